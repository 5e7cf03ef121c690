"""COVIDx's label lists: which lie in a folder, and what their lines say (see :mod:`chestflow.data.sources.covidx`)."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from chestflow.errors import DataError

SPLITS = ("train", "test", "val")
_NAME = re.compile(r"^(?P<split>train|test|val)(?:_split)?(?P<version>_COVIDx_?[\w-]+|_v\d+)?\.txt$")
#: Lists without a fourth column: the form of a patient's name tells the collection. The first that fits counts.
_COLLECTIONS = (
    ("rsna", re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")),
    ("kermany", re.compile(r"^1000\d{4}$")),
    ("fig1", re.compile(r"^COVID-\d{5}[a-z]?$")),
    ("actmed", re.compile(r"^ANON\d+$")),
    ("sirm", re.compile(r"^COVID-19\s*\(\d+\)$")),
    ("cohen", re.compile(r"^\d{1,4}[a-z]?$")),
)


@dataclass(frozen=True)
class Entry:
    """One line of a list."""

    patient: str
    file: str
    label: str
    collection: str  # cohen | fig1 | actmed | sirm | rsna | ricord | bimcv | kermany | unknown
    split: str


def find_lists(root: Path) -> dict[str, Path]:
    """Split -> the list of it, in the order train, test, val; the set's folder goes before ``labels/``.

    Raises:
        DataError: lists of several versions lie there.
    """
    for folder in (root, root / "labels"):
        if not folder.is_dir():
            continue
        found = {path: match for path in sorted(folder.iterdir()) if (match := _NAME.match(path.name))}
        versions = sorted({match["version"] or "" for match in found.values()})
        if len(versions) > 1:
            listed = ", ".join(version.lstrip("_") or "without a version" for version in versions)
            raise DataError(
                f"{folder} holds label lists of several versions of COVIDx ({listed}): leave one train list and its"
                " test list there"
            )
        by_split = {match["split"]: path for path, match in found.items()}
        if by_split:
            return {split: by_split[split] for split in SPLITS if split in by_split}
    return {}


def read_list(file: Path, split: str, classes: Container[str]) -> Iterator[Entry]:
    """The lines of a list; blank ones are passed over.

    A file's name may hold blanks, so the class is looked for at the end.

    Raises:
        DataError: a line has another form; the message names its number.
    """
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        parts = line.split()
        if not parts:
            continue
        place = next((place for place in (-1, -2) if len(parts) >= 2 - place and parts[place] in classes), None)
        if place is None:
            raise DataError(
                f"{file.name}, line {number}: not '<patient> <file> <class> [collection]' with a class of COVIDx; get"
                " the list again from COVID-Net's labels/"
            )
        patient, name = parts[0], " ".join(parts[1:place])
        collection = parts[-1] if place == -2 else collection_of(patient)
        yield Entry(patient, name, parts[place], collection, split)


def collection_of(patient: str) -> str:
    """The collection that names its patients like this; ``unknown`` where none does."""
    return next((name for name, form in _COLLECTIONS if form.match(patient)), "unknown")
