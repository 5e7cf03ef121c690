"""Cohen's COVID-19 image data collection (ieee8023/covid-chestxray-dataset): X-rays of publications, many diseases.

Layout, read from the repository's SCHEMA.md and metadata.csv (both forms of the column ``finding``, see
:mod:`chestflow.data.cohen_metadata`): ``metadata.csv``, and the X-rays in ``images/`` under the name in ``filename``.
Later revisions have a column ``folder``, which is ``volumes`` for CT; CT rows are rejected. Lateral views stay and say
so in ``view``: a cohort names the views that it uses. Each image has a licence of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chestflow.data.cohen_metadata import read_lines
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, require

INFO = SourceInfo(
    name="cohen",
    title="COVID-19 image data collection",
    modalities=("cxr",),
    classes=(
        "normal",
        "bacterial_pneumonia",
        "viral_pneumonia",
        "pneumonia",
        "other_infection",
        "non_covid",
        "covid19",
    ),
    published_counts={},  # it grew from week to week
    licence="by image, see metadata.csv",
    commercial_use=None,
    link="https://github.com/ieee8023/covid-chestxray-dataset",
)
TABLES = {"metadata.csv": Table("filename", "patientid", exact=True)}


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per X-ray of the table; one reject per CT and per X-ray that images/ does not hold."""
    require(root, INFO, "images", "metadata.csv")
    seen: set[str] = set()
    for name, record in read_lines(root / "metadata.csv"):
        key, path = f"images/{name}", root / "images" / name
        if name in seen:
            yield Reject(key, "listed_twice", "the first line of metadata.csv that names it counts")
            continue
        seen.add(name)
        if record.modality != "cxr":
            yield Reject(key, "wrong_modality", "the table says that it is CT")
        elif not path.is_file():
            yield Reject(key, "missing_file", "metadata.csv names it, images/ does not hold it")
        else:
            yield Row(
                key=key,
                path=path,
                modality="cxr",
                label=record.label,
                patient=record.patient or None,
                view=record.view,
                sex=record.sex,
                age=record.age,
                site="cohen",
                licence=record.licence,
                commercial_use=record.commercial_use,
            )
