"""Stage ensemble@ensemble-fold: its members' predictions joined by the weights that tune_w left."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.errors import one_line_errors
from chestflow.tuning.ensemble import apply_w
from chestflow.tuning.mean_ensemble import apply_shares

if __name__ == "__main__":
    with one_line_errors():
        params, name = load(), sys.argv[1]
        work = apply_shares if params.ensembles[name].kind == "mean" else apply_w
        work(name, int(sys.argv[2]), params, Path("out"))
