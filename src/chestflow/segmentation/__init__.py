"""Lungs and infection: masks on the original grid."""
