"""Radiologist masks on Cohen's COVID-19 X-rays (GeneralBlockchain): lungs and lesions, one mask file per structure.

Layout: ``images/``, ``masks/``, ``structure.csv`` (one row per structure: mask file, class, and where its crop lies in
the full image) and ``metadata.csv`` (Cohen's). Rows join on ``Filename``; the paths in ``Image`` do not exist. The
prefix "COVID-19" of each class is the annotation template's name and says nothing of the patient: ``finding`` does.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from chestflow.data.cohen_metadata import read_metadata
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, mask_reference, pictures, require
from chestflow.errors import DataError

INFO = SourceInfo(
    name="cohen_seg",
    title="COVID-19 chest X-ray segmentations",
    modalities=("cxr",),
    classes=("normal", "bacterial_pneumonia", "viral_pneumonia", "other_infection", "non_covid", "covid19"),
    # The 100 images of structure.csv by their finding in metadata.csv; the authors state the total alone.
    published_counts={
        "normal": 1,
        "bacterial_pneumonia": 9,
        "viral_pneumonia": 10,
        "other_infection": 11,
        "non_covid": 4,
        "covid19": 65,
    },
    licence="masks CC BY 4.0, images by their own",
    commercial_use=None,
    link="https://github.com/GeneralBlockchain/covid-19-chest-xray-segmentations-dataset",
)
LUNGS = ("Right Lung", "Left Lung")
LESIONS = ("Ground Glass Opacities", "Consolidation")
TABLES = {"metadata.csv": Table("filename", "patientid", "cohen"), "structure.csv": Table("Filename")}


def _structures(table: Path) -> dict[str, list[dict[str, str]]]:
    """File name -> its rows."""
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    with open(table, newline="", encoding="utf-8", errors="replace") as stream:
        reader = csv.DictReader(stream)
        needed = {"Class", "Filename", "Mask", "Top", "Left"}
        if not needed <= set(reader.fieldnames or ()):
            raise DataError(f"{table} lacks columns of {sorted(needed)}: get it again from {INFO.link}")
        for line in reader:
            found[line["Filename"]].append(line)
    return dict(found)


def _masks(root: Path, structures: list[dict[str, str]], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """References of the wanted structures' crops; () where none is drawn, which leaves them unknown."""
    drawn = [line for line in structures if line["Class"].removeprefix("COVID-19 ") in wanted and line["Mask"]]
    for line in drawn:
        if not (line["Top"].isdigit() and line["Left"].isdigit()):
            raise DataError(f"structure.csv of {INFO.title}: Top and Left of mask {line['Mask']} are not whole numbers")
    return tuple(mask_reference(root / line["Mask"], int(line["Top"]), int(line["Left"])) for line in drawn)


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per image that structure.csv names and images/ holds; one reject per named image that is not there."""
    require(root, INFO, "images", "masks", "structure.csv", "metadata.csv")
    structures, known = _structures(root / "structure.csv"), read_metadata(root / "metadata.csv")
    files = {path.name: path for path in pictures(root / "images")}
    for name in sorted(structures):
        key = f"images/{name}"
        record = known.get(Path(name).stem)
        if name not in files:
            yield Reject(key, "missing_file", "structure.csv names it, images/ does not hold it")
            continue
        lungs = _masks(root, structures[name], LUNGS)
        yield Row(
            key=key,
            path=files[name],
            modality=record.modality if record else "cxr",
            label=record.label if record else None,
            patient=record.patient if record else None,
            patient_source="cohen" if record else None,
            view=record.view if record else None,
            sex=record.sex if record else None,
            age=record.age if record else None,
            site="cohen",
            # One lung alone would pass for both.
            lung_mask=lungs if len(lungs) >= len(LUNGS) else (),
            infection_mask=_masks(root, structures[name], LESIONS),
            licence=record.licence if record else None,
            commercial_use=record.commercial_use if record else None,
        )
