"""Optuna studies on the tune role."""
