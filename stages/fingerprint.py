"""Stage fingerprint: what the code of every other stage is made of."""

from pathlib import Path

from chestflow.errors import one_line_errors
from chestflow.fingerprint import write

if __name__ == "__main__":
    with one_line_errors():
        write(Path("stages"), Path("out/code"))
