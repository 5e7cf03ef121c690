"""Stage tune_w@ensemble-fold: both ensemble weights and the two ratio cuts on the tune role."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.errors import one_line_errors
from chestflow.tuning.ensemble import tune_w

if __name__ == "__main__":
    with one_line_errors():
        tune_w(sys.argv[1], int(sys.argv[2]), load(), Path("out"), Path(".checkpoints"))
