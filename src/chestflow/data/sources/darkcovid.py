"""DarkCovidNet's chest X-rays: Cohen's COVID-19 images against NIH ChestX-ray8's pneumonia and no findings.

Layout: ``X-Ray Image DataSet/{Covid-19,Pneumonia,No_findings}/``. An NIH name is ``<patient>_<follow-up>``. A COVID
name carries no patient: Cohen's metadata.csv gives it, by the file's stem, where the table lies in the set's folder or
in ``cohen`` or ``cohen_seg`` beside it. No COVID image comes from where the others come from: source and class are
confounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from chestflow.data.cohen_metadata import metadata_near
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, pictures, require

INFO = SourceInfo(
    name="darkcovid",
    title="DarkCovidNet chest X-rays",
    modalities=("cxr",),
    classes=("normal", "pneumonia", "covid19"),
    published_counts={"normal": 500, "pneumonia": 500, "covid19": 125},
    licence="none stated",
    commercial_use=None,
    link="https://github.com/muhammedtalo/COVID-19",
)
FOLDER = "X-Ray Image DataSet"
LABELS = {"Covid-19": "covid19", "Pneumonia": "pneumonia", "No_findings": "normal"}
TABLES = {"metadata.csv": Table("filename", "patientid", "cohen")}
_NIH = re.compile(r"^(\d{8})_(\d{3})")


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per file of the three class folders."""
    require(root, INFO, *(f"{FOLDER}/{name}" for name in LABELS))
    known = metadata_near(root)
    for name, label in LABELS.items():
        for path in pictures(root / FOLDER / name):
            key = path.relative_to(root).as_posix()
            nih, cohen = _NIH.match(path.stem), known.get(path.stem)
            if label == "covid19":
                yield Row(
                    key=key,
                    path=path,
                    modality="cxr",
                    label=label,
                    site="cohen",
                    patient=cohen.patient if cohen else None,
                    patient_source="cohen" if cohen else None,
                    view=cohen.view if cohen else None,
                    sex=cohen.sex if cohen else None,
                    age=cohen.age if cohen else None,
                    licence=cohen.licence if cohen else None,
                    commercial_use=cohen.commercial_use if cohen else None,
                )
            else:
                yield Row(
                    key=key,
                    path=path,
                    modality="cxr",
                    label=label,
                    site="nih",
                    patient=nih[1] if nih else None,
                    patient_source="nih" if nih else None,
                )
