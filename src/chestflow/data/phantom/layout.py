"""What the adapter must know of the cohort's folder: it does not depend on how phantoms are made."""

TABLE = "images.csv"
LICENCE = "CC0-1.0 synthetic"
