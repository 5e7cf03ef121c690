"""Stage manifest: the sets' rows in one manifest, what several sets share named and counted."""

from pathlib import Path

from chestflow.config import load
from chestflow.data.pooling import pool
from chestflow.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        pool(load().data.sets, Path("out/ingest"), Path("out"))
