"""Stage split: groups that must stay together, and each cohort's folds and roles."""

from pathlib import Path

from chestflow.config import load
from chestflow.data.splits import write
from chestflow.errors import one_line_errors


def main() -> None:
    params = load()
    write(Path("out/manifest.parquet"), params.cohorts, params.split, Path("out"), seed=params.seed)


if __name__ == "__main__":
    with one_line_errors():
        main()
