"""Stage tune_tau@run-fold: the heat map's threshold, on the tune role, before the run is trained."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.dag import require_current
from chestflow.errors import one_line_errors
from chestflow.tuning.tau import tune_tau

if __name__ == "__main__":
    with one_line_errors():
        params = load()
        require_current(params)
        tune_tau(sys.argv[1], int(sys.argv[2]), params, Path("out"), Path(".checkpoints"))
