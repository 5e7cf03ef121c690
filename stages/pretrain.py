"""Stage pretrain@name: train a backbone on a cohort's training pictures without their labels."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.dag import require_current
from chestflow.errors import one_line_errors
from chestflow.training.pretraining import pretrain


def main(name: str) -> None:
    params = load()
    require_current(params)
    pretrain(params, name, Path("out"), Path(".checkpoints"))


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1])
