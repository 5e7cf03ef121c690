"""Stage validate: Great Expectations on the manifest and the dataset rules; a critical failure stops the pipeline."""

from pathlib import Path

from chestflow.config import load
from chestflow.data.validation import validate
from chestflow.errors import one_line_errors


def main() -> None:
    validate(load(), Path("out"), docs=Path("reports/gx"))


if __name__ == "__main__":
    with one_line_errors():
        main()
