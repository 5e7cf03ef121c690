"""RSNA pneumonia detection challenge: NIH X-rays as DICOM, with boxes where radiologists saw lung opacities.

Layout: ``stage_2_train_images/<id>.dcm``, ``stage_2_train_labels.csv`` (a line per box: patientId, x, y, width, height,
Target) and ``stage_2_detailed_class_info.csv`` (patientId, class); read from ``mlmed/torchxrayvision:
torchxrayvision/datasets.py`` (RSNA_Pneumonia_Dataset). The challenge calls each picture a patient. Its pictures are
NIH's, though, several of one person among them: where RSNA's ``pneumonia-challenge-dataset-mappings_2018.json`` lies in
the folder (``subset_img_id``, ``img_id``; read from ``microsoft/InnerEye-DeepLearning:
InnerEye-DataQuality/InnerEyeDataQuality/datasets/noisy_cxr_benchmark_creation/create_noisy_chestxray_dataset.py``),
the patient is NIH's, and a split keeps the person's pictures together. The
challenge's test pictures have no labels and are left out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from chestflow.data.source_tables import read_lines
from chestflow.data.sources.base import Box, Reject, Row, SourceInfo, Table, require
from chestflow.errors import DataError

INFO = SourceInfo(
    name="rsna",
    title="RSNA pneumonia detection challenge 2018",
    modalities=("cxr",),
    classes=("normal", "pneumonia", "non_covid"),
    published_counts={"normal": 8851, "pneumonia": 6012, "non_covid": 11821},
    licence="challenge rules: research and education, not commercial",
    commercial_use=False,
    link="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
)
IMAGES, LABELS, CLASSES = "stage_2_train_images", "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
TABLES = {LABELS: Table("patientId", "patientId"), CLASSES: Table("patientId", "patientId")}
LABEL_OF = {"Normal": "normal", "Lung Opacity": "pneumonia", "No Lung Opacity / Not Normal": "non_covid"}


def _boxes(table: Path) -> dict[str, tuple[Box, ...]]:
    """Picture's id -> its boxes."""
    found: dict[str, list[Box]] = defaultdict(list)
    columns = ("x", "y", "width", "height")
    for line in read_lines(table, ("patientId", "Target", *columns)):
        if line["Target"] == "1":
            try:
                x, y, width, height = (float(line[column]) for column in columns)
            except ValueError:
                raise DataError(f"{table}: a box of {INFO.title} is not four numbers") from None
            found[line["patientId"]].append((x, y, width, height))
    return {name: tuple(boxes) for name, boxes in found.items()}


def nih_patients(mapping: Path) -> dict[str, str]:
    """Picture's id -> NIH's patient; empty without RSNA's mapping."""
    if not mapping.is_file():
        return {}
    try:
        listed = json.loads(mapping.read_text())
        return {item["subset_img_id"]: item["img_id"].split("_")[0] for item in listed}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{mapping} does not map the pictures to NIH's: get it again from RSNA, or delete it") from None


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per picture of the training stage; one reject per named picture that is not there."""
    require(root, INFO, IMAGES, LABELS, CLASSES)
    classes = {line["patientId"]: line["class"] for line in read_lines(root / CLASSES, ("patientId", "class"))}
    boxes, patients = _boxes(root / LABELS), nih_patients(root / MAPPING)
    files = {path.stem: path for path in sorted((root / IMAGES).glob("*.dcm"))}
    for name in sorted(classes):
        key = f"{IMAGES}/{name}.dcm"
        if name not in files:
            yield Reject(key, "missing_file", f"{CLASSES} names it, {IMAGES}/ does not hold it")
            continue
        yield Row(
            key=key,
            path=files[name],
            modality="cxr",
            label=LABEL_OF.get(classes[name]),
            patient=patients.get(name, name),
            patient_source="nih" if name in patients else None,
            site="nih",
            boxes=boxes.get(name),
        )
