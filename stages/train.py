"""Stage train@run-fold: fit a run's phases, predict its tune and test images, and record it in MLflow."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.dag import require_current
from chestflow.errors import one_line_errors
from chestflow.tracking.runs import training_run
from chestflow.training.run import train_run

OUT, CHECKPOINTS = Path("out"), Path(".checkpoints")


def main(run: str, fold: int) -> None:
    params = load()
    require_current(params)
    with training_run(params, run, fold, out=OUT, checkpoints=CHECKPOINTS) as record:
        train_run(params, run, fold, out=OUT, checkpoints=CHECKPOINTS, log=record)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1], int(sys.argv[2]))
