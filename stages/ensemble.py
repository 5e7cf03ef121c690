"""Stage ensemble@ensemble-fold: the two networks' predictions joined with the weight of their infection ratio."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.errors import one_line_errors
from chestflow.tuning.ensemble import apply_w

if __name__ == "__main__":
    with one_line_errors():
        apply_w(sys.argv[1], int(sys.argv[2]), load(), Path("out"))
