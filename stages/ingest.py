"""Stage ingest@set: one row per image or volume of a set, and a reason for every file that cannot be used."""

import sys
from pathlib import Path

from chestflow.config import load
from chestflow.data.ingest import ingest
from chestflow.errors import one_line_errors


def main(source: str) -> None:
    data = load().data
    out = Path("out/ingest") / source
    ingest(source, Path("data") / source, out, id_key=data.id_key, patients=data.patients_per_set)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1])
