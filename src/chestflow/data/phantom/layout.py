"""What the adapter must know of the cohort's folder: it does not depend on how phantoms are made."""

TABLE = "images.csv"
LICENCE = "CC0-1.0 synthetic"
LARGE = "phantom_large"
#: The embedded cohort, and the larger one that `chestflow data phantom --large` writes. What was computed is called so
#: wherever a figure, picture or model made of it is shown.
SETS = ("phantom", LARGE)
