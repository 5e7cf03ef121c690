"""Stage evaluate@name: join the test labels, once, and compute every figure that a table or a gate reads."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.errors import one_line_errors
from chestflow.evaluation.evaluate import evaluate

if __name__ == "__main__":
    with one_line_errors():
        evaluate(sys.argv[1], load(), Path("out"))
