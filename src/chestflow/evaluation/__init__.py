"""Metrics, intervals, calibration, localisation and the report."""
