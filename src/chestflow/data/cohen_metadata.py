"""Cohen's metadata.csv (covid-chestxray-dataset), shared by the sets that took images from his collection."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from chestflow.errors import DataError

#: finding -> label. Findings that are left out ("Unknown", "todo") are unknown.
LABELS: dict[str, str] = {
    "COVID-19": "covid19",
    "COVID-19, ARDS": "covid19",
    "SARS": "viral_pneumonia",
    "Influenza": "viral_pneumonia",
    "Varicella": "viral_pneumonia",
    "Streptococcus": "bacterial_pneumonia",
    "Klebsiella": "bacterial_pneumonia",
    "Legionella": "bacterial_pneumonia",
    "E.Coli": "bacterial_pneumonia",
    "Chlamydophila": "bacterial_pneumonia",
    "Mycoplasma Bacterial Pneumonia": "bacterial_pneumonia",
    "Bacterial": "bacterial_pneumonia",
    "Pneumocystis": "other_infection",  # a fungus
    "Pneumonia": "pneumonia",
    "Lipoid": "non_covid",  # aspirated fat, not an infection
    "ARDS": "non_covid",  # cause not stated
    "No Finding": "normal",
}
VIEWS = ("PA", "AP", "AP Supine", "L", "Axial", "Coronal")
NEEDED = ("patientid", "sex", "age", "finding", "view", "modality", "filename", "license")


@dataclass(frozen=True)
class CohenRecord:
    """What the table says about one image."""

    patient: str
    label: str | None
    view: str | None
    sex: str | None
    age: float | None
    modality: str  # cxr | ct_slice
    licence: str
    commercial_use: bool | None


def commercial_use(licence: str) -> bool | None:
    """Whether a licence named in the table allows commercial use; None where its words do not settle it."""
    words = licence.upper()
    if words.startswith("CC BY"):
        return "NC" not in words
    return True if words.startswith("APACHE") else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _record(line: dict[str, str]) -> CohenRecord:
    value = {name: (line.get(name) or "").strip() for name in NEEDED}
    return CohenRecord(
        patient=value["patientid"],
        label=LABELS.get(value["finding"]),
        view=value["view"] if value["view"] in VIEWS else None,
        sex=value["sex"] if value["sex"] in ("F", "M") else None,
        age=_number(value["age"]),
        modality="ct_slice" if value["modality"] == "CT" else "cxr",
        licence=value["license"] or "none stated",
        commercial_use=commercial_use(value["license"]),
    )


def read_metadata(path: Path) -> dict[str, CohenRecord]:
    """File stem -> record. Stems and not names: sets that took an image may have changed its format.

    Raises:
        DataError: the file is not Cohen's table.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} is not Cohen's metadata.csv: it lacks the columns {', '.join(missing)}")
            return {Path(line["filename"]).stem: _record(line) for line in reader if line.get("filename")}
    except csv.Error as error:
        raise DataError(f"{path} is not a readable table ({error}): get it again from its source") from None
