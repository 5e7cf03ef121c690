"""Reading the CSV tables of public sets: every column that an adapter needs is there, or one line says which is not."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from chestflow.errors import DataError


def read_lines(path: Path, needed: Sequence[str], encoding: str = "utf-8") -> Iterator[dict[str, str]]:
    """The lines of a table, each a column -> value without blanks around it; missing values are empty.

    Args:
        path: the table.
        needed: columns that must be there; others are passed on.
        encoding: of the file; what it cannot decode is replaced.

    Raises:
        DataError: a column is missing, or the file is no table.
    """
    try:
        with open(path, newline="", encoding=encoding, errors="replace") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} lacks the columns {', '.join(missing)}: get it again from its source")
            for line in reader:
                yield {name: (value or "").strip() for name, value in line.items() if isinstance(name, str)}
    except csv.Error as error:
        raise DataError(f"{path} is not a readable table ({error}): get it again from its source") from None


def number(text: str) -> float | None:
    """A plain number; None for ``50+``, ``early 40s`` and other words, which are no number."""
    try:
        return float(text)
    except ValueError:
        return None
