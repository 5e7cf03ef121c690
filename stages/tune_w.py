"""Stage tune_w@ensemble-fold: an ensemble's weights on the tune role."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.errors import one_line_errors
from chestflow.tuning.ensemble import tune_w
from chestflow.tuning.mean_ensemble import tune_shares

if __name__ == "__main__":
    with one_line_errors():
        params, name = load(), sys.argv[1]
        work = tune_shares if params.ensembles[name].kind == "mean" else tune_w
        work(name, int(sys.argv[2]), params, Path("out"), Path(".checkpoints"))
