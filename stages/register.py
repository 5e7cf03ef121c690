"""Stage register@name: a model version with alias `candidate`, linked to its MLflow runs and data."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.errors import one_line_errors
from chestflow.tracking.registry import register

if __name__ == "__main__":
    with one_line_errors():
        register(load(), sys.argv[1], Path("out"))
