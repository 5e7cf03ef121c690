"""The embedded cohort: synthetic patients whose CT volumes, slices and X-rays come from one parametric thorax.

Everything is computed from one seed; nothing here is, or is derived from, a picture of a person.
"""
