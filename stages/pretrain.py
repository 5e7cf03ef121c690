"""Stage pretrain@name: train a backbone on a cohort's training pictures without their labels."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.dag import require_current
from chestflow.errors import one_line_errors
from chestflow.tracking.stage_runs import pretraining_run
from chestflow.training.pretraining import pretrain

OUT, CHECKPOINTS = Path("out"), Path(".checkpoints")


def main(name: str) -> None:
    params = load()
    require_current(params)
    with pretraining_run(params, name, out=OUT, checkpoints=CHECKPOINTS) as record:
        pretrain(params, name, OUT, CHECKPOINTS, log=record.metrics)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1])
