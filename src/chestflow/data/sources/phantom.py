"""The embedded phantom cohort, as `chestflow data phantom` writes it: images.csv beside ct/, slices/ and xray/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from chestflow.data.phantom.layout import LICENCE, TABLE
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, mask_reference, require
from chestflow.errors import DataError

INFO = SourceInfo(
    name="phantom",
    title="the embedded phantom cohort (synthetic)",
    modalities=("cxr", "ct_slice", "ct_volume"),
    classes=("normal", "bacterial_pneumonia", "viral_pneumonia", "covid19"),
    published_counts={},
    licence=LICENCE,
    commercial_use=True,
    link="chestflow data phantom",
)

TABLES = {TABLE: Table("path", "patient")}
NEEDED = ("path", "modality", "label", "patient", "study", "sex", "age", "site", "view", "lung_mask", "infection_mask")


def rows(root: Path) -> Iterator[Row | Reject]:
    """Rows of images.csv.

    Raises:
        DataError: the table is missing or lacks a column.
    """
    require(root, INFO, TABLE)
    table = pd.read_csv(root / TABLE, dtype=str, keep_default_na=False)
    missing = [name for name in NEEDED if name not in table.columns]
    if missing:
        raise DataError(f"{root / TABLE} lacks the columns {missing}: run `chestflow data phantom` again")
    for record in table.to_dict("records"):
        key = str(record["path"])
        if not (root / key).exists():
            yield Reject(key, "missing_file", "listed in images.csv, but the file is not there")
            continue
        yield Row(
            key=key,
            path=root / key,
            modality=record["modality"],
            label=record["label"],
            patient=record["patient"],
            study=record["study"],
            view=record["view"] or None,
            sex=record["sex"] or None,
            age=float(record["age"]) if record["age"] else None,
            site=record["site"] or None,
            lung_mask=_masks(root, record["lung_mask"]),
            infection_mask=_masks(root, record["infection_mask"]),
        )


def _masks(root: Path, name: str) -> tuple[str, ...]:
    return (mask_reference(root / name),) if name else ()
