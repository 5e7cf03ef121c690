"""Stage tune@name-fold: temperature and operating threshold on the tune role."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.errors import one_line_errors
from chestflow.tuning.calibration import tune

if __name__ == "__main__":
    with one_line_errors():
        tune(sys.argv[1], int(sys.argv[2]), load(), Path("out"), Path(".checkpoints"))
