"""Cohen's metadata.csv (covid-chestxray-dataset), shared by the sets that took images from his collection."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from chestflow.errors import DataError

#: finding -> label. Findings that are left out ("Unknown", "todo") are unknown. Revisions of the table until mid-2020
#: name the cause alone ("SARS"), later ones its place in a tree ("Pneumonia/Viral/SARS"), see :func:`label_of`.
LABELS: dict[str, str] = {
    "COVID-19": "covid19",
    "COVID-19, ARDS": "covid19",
    "SARS": "viral_pneumonia",
    "MERS": "viral_pneumonia",
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
    "Tuberculosis": "other_infection",  # bacterial, and no pneumonia in the sense of the other labels
    "No Finding": "normal",
}
#: Branches of the tree -> label; the longest that fits counts.
BRANCHES: dict[str, str] = {
    "Pneumonia": "pneumonia",
    "Pneumonia/Aspiration": "pneumonia",  # its cause is not stated
    "Pneumonia/Bacterial": "bacterial_pneumonia",
    "Pneumonia/Fungal": "other_infection",
    "Pneumonia/Lipoid": "non_covid",
    "Pneumonia/Viral": "viral_pneumonia",
    "Pneumonia/Viral/COVID-19": "covid19",
}
#: As the table writes it, in lower case -> view.
VIEWS: dict[str, str] = {
    "pa": "PA",
    "ap": "AP",
    "ap supine": "AP Supine",
    "ap erect": "AP Erect",
    "ap semi erect": "AP Semi Erect",
    "l": "L",
    "axial": "Axial",
    "coronal": "Coronal",
}
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


def label_of(finding: str) -> str | None:
    """The label of a finding in either form of the table; None where it is not known."""
    finding = finding.strip()
    if finding in LABELS:
        return LABELS[finding]
    parts = finding.split("/")
    for length in range(len(parts), 0, -1):
        label = BRANCHES.get("/".join(parts[:length]))
        if label is not None:
            return label
    return None


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
        label=label_of(value["finding"]),
        view=VIEWS.get(value["view"].lower()),
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
    return {Path(name).stem: record for name, record in read_lines(path)}


def read_lines(path: Path) -> list[tuple[str, CohenRecord]]:
    """File name and record of each line that names a file, in the table's order; a few stems occur in two formats.

    Raises:
        DataError: the file is not Cohen's table.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} is not Cohen's metadata.csv: it lacks the columns {', '.join(missing)}")
            return [(line["filename"].strip(), _record(line)) for line in reader if (line["filename"] or "").strip()]
    except csv.Error as error:
        raise DataError(f"{path} is not a readable table ({error}): get it again from its source") from None


def metadata_near(root: Path) -> dict[str, CohenRecord]:
    """Cohen's table for a set that took images from him: in its own folder, or in one of Cohen's sets beside it.

    Returns:
        What :func:`read_metadata` does, or nothing where the table is in none of these places.
    """
    for folder in (root, root.parent / "cohen", root.parent / "cohen_seg"):
        if (folder / "metadata.csv").is_file():
            return read_metadata(folder / "metadata.csv")
    return {}
