"""CheXpert (Stanford), adults: frontal and lateral X-rays with labels read from reports by a program.

Layout, read from the header and first lines of train.csv as public code and the card of
danjacobellis/chexpert quote them: ``train.csv`` and ``valid.csv`` beside ``train/`` and
``valid/``, in the set's folder or in ``CheXpert-v1.0[-small]/`` below it; the column ``Path`` begins with that folder's
name and goes on ``train/patient00001/study1/view1_frontal.jpg``.

Of the 14 findings two give a label: "No Finding" is normal and "Pneumonia" pneumonia, where they are 1. An uncertain
pneumonia (-1) leaves the label unknown (the policy that the CheXpert paper calls U-Ignore); whatever else there is, is
not COVID-19, since all images are of 2002 to 2017. A file ``subset.txt`` with one such path a line limits the set to
those images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from chestflow.data.source_tables import number, read_lines
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, require

INFO = SourceInfo(
    name="chexpert",
    title="CheXpert",
    modalities=("cxr",),
    classes=("normal", "pneumonia", "non_covid"),
    published_counts={},
    licence="Stanford research use agreement, non-commercial",
    commercial_use=False,
    link="https://stanfordmlgroup.github.io/competitions/chexpert/",
)
SPLITS = {"train.csv": "train", "valid.csv": "tune"}
NEEDED = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", "Pneumonia")
TABLES = {
    f"{folder}{file}": Table("Path", exact=True)
    for folder in ("", "CheXpert-v1.0/", "CheXpert-v1.0-small/")
    for file in SPLITS
}
_PATH = re.compile(r"(?:^|/)(?P<key>(?:train|valid)/(?P<study>(?P<patient>patient\d+)/study\d+)/[^/]+)$")


def label_of(line: dict[str, str]) -> str | None:
    """normal, pneumonia, non_covid for any other finding, or None for an uncertain pneumonia."""
    pneumonia = number(line["Pneumonia"])
    if pneumonia == 1:
        return "pneumonia"
    if pneumonia == -1:
        return None
    return "normal" if number(line["No Finding"]) == 1 else "non_covid"


def _view(line: dict[str, str]) -> str | None:
    if line["Frontal/Lateral"] == "Lateral":
        return "L"
    return line["AP/PA"] if line["AP/PA"] in ("AP", "PA") else None


def _key(path: str) -> str:
    """The path below the folder of train.csv."""
    match = _PATH.search(path)
    return match["key"] if match else path


def _wanted(root: Path) -> set[str] | None:
    """Keys of subset.txt; None where there is none."""
    file = root / "subset.txt"
    if not file.is_file():
        return None
    return {_key(line.strip()) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()}


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per line of both tables whose image is there, one reject for each other."""
    base = next((table.parent for table in sorted(root.glob("CheXpert-v1.0*/train.csv"))), root)
    require(base, INFO, "train.csv", "valid.csv")
    wanted, seen = _wanted(root), set()
    for file, split in SPLITS.items():
        for line in read_lines(base / file, NEEDED):
            match = _PATH.search(line["Path"])
            key = match["key"] if match else line["Path"]
            if wanted is not None and key not in wanted:
                continue
            if key in seen:
                yield Reject(key, "listed_twice", "the first line that names it counts")
                continue
            seen.add(key)
            if match is None or not (base / key).is_file():
                yield Reject(key, "missing_file", f"{file} names it, and it is not there")
                continue
            age = number(line["Age"])
            yield Row(
                key=key,
                path=base / key,
                modality="cxr",
                label=label_of(line),
                patient=match["patient"],
                study=match["study"],
                view=_view(line),
                sex={"Female": "F", "Male": "M"}.get(line["Sex"]),
                age=age or None,  # adults: 0 stands for unknown
                site="chexpert",
                official_split=split,
            )
    for key in sorted((wanted or set()) - seen):
        yield Reject(key, "missing_file", "subset.txt names it, neither table does")
