"""Stage report: one self-contained page, the comparison between methods, and the reproduction table."""

from pathlib import Path

from chestflow.config import load
from chestflow.dag import require_current
from chestflow.errors import one_line_errors
from chestflow.evaluation.report import write


def main() -> None:
    params = load()
    require_current(params)
    write(params, Path("out"))


if __name__ == "__main__":
    with one_line_errors():
        main()
