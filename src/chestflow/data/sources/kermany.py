"""Kermany's chest X-rays of children: healthy, bacterial and viral pneumonia, told apart by file name.

Layout: ``chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/``, or the class folders right below ``chest_xray``; read from
the loaders of ``paultimothymooney/chest-xray-pneumonia`` and, for the names of the release on Mendeley
(``BACTERIA-1008087-0001``), ``mariakang/clever-cat: ai-assignment/data/dataset.js``. Names: ``person78_bacteria_378``,
``person78_virus_140``, ``IM-0001-0001``, ``NORMAL2-IM-0381-0001``. A number counts within its kind: person 78 under
bacteria is not person 78 under virus.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from chestflow.data.sources.base import Reject, Row, SourceInfo, pictures, require

INFO = SourceInfo(
    name="kermany",
    title="Kermany's paediatric chest X-rays",
    modalities=("cxr",),
    classes=("normal", "bacterial_pneumonia", "viral_pneumonia"),
    published_counts={"normal": 1583, "bacterial_pneumonia": 2780, "viral_pneumonia": 1493},
    licence="CC BY 4.0",
    commercial_use=True,
    link="https://data.mendeley.com/datasets/rscbjbr9sj/2",
    ages=(1.0, 5.0),
)
SPLITS = {"train": "train", "val": "tune", "test": "test"}
KINDS = {"bacteria": "bacterial_pneumonia", "virus": "viral_pneumonia", "normal": "normal"}
_NAMES = (
    re.compile(r"^(?P<patient>person\d+_(?P<kind>bacteria|virus))_\d+"),
    re.compile(r"^(?P<patient>(?:NORMAL2-)?IM-\d+)-\d+"),
    re.compile(r"^(?P<patient>(?P<kind>BACTERIA|VIRUS|NORMAL)-\d+)-\d+"),
)


def named(stem: str) -> tuple[str, str] | None:
    """Patient and label that a file's name states, without its ending; None for a name of another set."""
    for pattern in _NAMES:
        if match := pattern.match(stem):
            return match["patient"], KINDS[match.groupdict().get("kind", "normal").lower()]
    return None


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per picture; an unknown name under PNEUMONIA is pneumonia of a kind that is not known."""
    top = root / "chest_xray"
    parts = [name for name in SPLITS if (top / name).is_dir()] or [""]
    require(
        root, INFO, *(Path("chest_xray", part, kind).as_posix() for part in parts for kind in ("NORMAL", "PNEUMONIA"))
    )
    for part in parts:
        for folder, otherwise in (("NORMAL", "normal"), ("PNEUMONIA", "pneumonia")):
            for path in pictures(top / part / folder):
                patient, label = named(path.stem) or (None, otherwise)
                yield Row(
                    key=path.relative_to(root).as_posix(),
                    path=path,
                    modality="cxr",
                    # The folder decides between healthy and ill, the name between the two kinds of illness.
                    label=label if (label == "normal") == (otherwise == "normal") else otherwise,
                    patient=patient,
                    view="AP",  # all of them, as the authors state
                    site="kermany",
                    official_split=SPLITS.get(part),
                )
