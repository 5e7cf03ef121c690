"""Actualmed's COVID-19 X-rays (agchung/Actualmed-COVID-chestxray-dataset), which COVIDx takes in.

Layout, read from the repository's metadata.csv and from format_csv.py, which writes it: ``metadata.csv`` and
``images/<imagename>``. "No finding" is the table's word for what the hospital called normal (no COVID-19, no other
finding noted); a line without a finding was inconclusive, and its label is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chestflow.data.cohen_metadata import VIEWS, label_of
from chestflow.data.source_tables import number, read_lines
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, require

INFO = SourceInfo(
    name="actualmed",
    title="Actualmed COVID-19 chest X-rays",
    modalities=("cxr",),
    classes=("normal", "covid19"),
    published_counts={"normal": 127, "covid19": 58},  # lines of metadata.csv with such a finding
    licence="research use only",
    commercial_use=False,
    link="https://github.com/agchung/Actualmed-COVID-chestxray-dataset",
)
FINDINGS = {"No finding": "No Finding"}
TABLES = {"metadata.csv": Table("imagename", "patientid", exact=True)}


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per line of the table whose image is there, one reject for each other."""
    require(root, INFO, "images", "metadata.csv")
    needed = ("patientid", "sex", "age", "finding", "view", "modality", "imagename")
    seen: set[str] = set()
    for line in read_lines(root / "metadata.csv", needed):
        name = line["imagename"]
        if not name:
            continue
        key, path = f"images/{name}", root / "images" / name
        if key in seen:
            yield Reject(key, "listed_twice", "the first line of metadata.csv that names it counts")
        elif not path.is_file():
            yield Reject(key, "missing_file", "metadata.csv names it, images/ does not hold it")
        elif line["modality"] == "CT":
            yield Reject(key, "wrong_modality", "the table says that it is CT")
        else:
            yield Row(
                key=key,
                path=path,
                modality="cxr",
                label=label_of(FINDINGS.get(line["finding"], line["finding"])),
                patient=line["patientid"] or None,
                view=VIEWS.get(line["view"].lower()),
                sex=line["sex"] if line["sex"] in ("F", "M") else None,
                age=number(line["age"]),
                site="actualmed",
            )
        seen.add(key)
