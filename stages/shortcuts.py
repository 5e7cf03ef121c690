"""Stage shortcuts@task: how well source and class can be told from a picture, its border, or without lungs."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.errors import one_line_errors
from chestflow.evaluation.shortcuts import shortcuts

if __name__ == "__main__":
    with one_line_errors():
        shortcuts(sys.argv[1], sys.argv[2], load(), Path("out"))
