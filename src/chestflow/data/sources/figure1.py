"""Figure 1's COVID-19 X-rays (agchung/Figure1-COVID-chestxray-dataset), which COVIDx takes in.

Layout, read from the repository's metadata.csv and README.md and from COVID-Net's create_COVIDx_v3.ipynb, which reads
it: ``metadata.csv`` in Latin-1, and ``images/<patientid>.jpg`` or ``.png``. A letter behind the number tells the images
of one patient apart. No finding is stated for many: their label is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from chestflow.data.cohen_metadata import VIEWS, label_of
from chestflow.data.source_tables import number, read_lines
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, require

INFO = SourceInfo(
    name="figure1",
    title="Figure 1 COVID-19 chest X-rays",
    modalities=("cxr",),
    classes=("normal", "pneumonia", "covid19"),
    published_counts={"normal": 3, "pneumonia": 2, "covid19": 35},  # lines of metadata.csv with such a finding
    licence="research use only",
    commercial_use=False,
    link="https://github.com/agchung/Figure1-COVID-chestxray-dataset",
)
#: "No finding" with a small f, as both of agchung's tables write it.
FINDINGS = {"No finding": "No Finding"}
TABLES = {"metadata.csv": Table("patientid", "patientid")}
_IMAGE = re.compile(r"^(?P<patient>.*\d)[a-z]$")


def patient_of(name: str) -> str:
    """``COVID-00039b`` is the second image of patient ``COVID-00039``."""
    match = _IMAGE.match(name)
    return match["patient"] if match else name


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per line of the table whose image is there, one reject for each other."""
    require(root, INFO, "images", "metadata.csv")
    needed = ("patientid", "sex", "age", "finding", "view", "modality")
    seen: set[str] = set()
    for line in read_lines(root / "metadata.csv", needed, encoding="latin-1"):
        name = line["patientid"]
        if not name:
            continue
        found = [path for ending in ("jpg", "png") if (path := root / "images" / f"{name}.{ending}").is_file()]
        key = f"images/{found[0].name if found else name}"
        if key in seen:
            yield Reject(key, "listed_twice", "the first line of metadata.csv that names it counts")
        elif not found:
            yield Reject(key, "missing_file", "metadata.csv names it, images/ does not hold it")
        elif line["modality"] == "CT":
            yield Reject(key, "wrong_modality", "the table says that it is CT")
        else:
            yield Row(
                key=key,
                path=found[0],
                modality="cxr",
                label=label_of(FINDINGS.get(line["finding"], line["finding"])),
                patient=patient_of(name),
                view=VIEWS.get(line["view"].lower()),
                sex=line["sex"] if line["sex"] in ("F", "M") else None,
                age=number(line["age"]),
                site="figure1",
            )
        seen.add(key)
