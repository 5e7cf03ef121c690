"""Manifests, splits, packs and the embedded phantom cohort."""
