"""COVIDx (lindawangg/COVID-Net): Normal, Pneumonia and COVID-19 from several collections, by published label lists.

Lists, read from the repository's docs/COVIDx.md, labels/ and archive/, and from data.py, which splits their lines at
blanks: ``<patient> <file> <class>``, from version 3 on with a fourth column, the collection. ``normal``, ``pneumonia``
and ``COVID-19`` are the classes of versions 2 to 5 and of the A lists of 7, 8, 9 and CXR-3; version 1 told
``bacteria`` and ``viral`` apart; version 6 and the B lists say ``positive`` and ``negative``. Names are
``train_COVIDx5.txt``, ``train_split_v1.txt`` or, in the Kaggle download, ``train.txt``; they lie in the set's folder or
in ``labels/`` below it, and one version at a time.

Images lie in ``train/`` and ``test/`` (or ``data/train/``), where COVID-Net's notebooks write them, or in the
collections' own folders beside the lists, from which create_COVIDx_v3.ipynb reads: see :data:`FOLDERS`. COVIDx counts
each of RSNA's pictures as a patient; where RSNA's mapping lies in its folder, the patient is NIH's, as in the set rsna.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from chestflow.data.cohen_metadata import CohenRecord, read_lines
from chestflow.data.covidx_lists import Entry, find_lists, read_list
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, require
from chestflow.data.sources.figure1 import patient_of
from chestflow.data.sources.rsna import MAPPING, nih_patients

INFO = SourceInfo(
    name="covidx",
    title="COVIDx",
    modalities=("cxr",),
    classes=("normal", "bacterial_pneumonia", "viral_pneumonia", "pneumonia", "non_covid", "covid19"),
    published_counts={"normal": 8066, "pneumonia": 5575, "covid19": 617},  # version 5, train and test
    licence="by collection, research use",
    commercial_use=None,
    link="https://github.com/lindawangg/COVID-Net/blob/master/docs/COVIDx.md",
)
LABELS = {
    "normal": "normal",
    "pneumonia": "pneumonia",
    "bacteria": "bacterial_pneumonia",
    "viral": "viral_pneumonia",
    "COVID-19": "covid19",
    "positive": "covid19",
    "negative": "non_covid",
}
#: Collection -> folders that may hold its images, as their own repositories and archives name them.
FOLDERS = {
    "cohen": ("covid-chestxray-dataset/images",),
    "fig1": ("Figure1-COVID-chestxray-dataset/images",),
    "actmed": ("Actualmed-COVID-chestxray-dataset/images",),
    "sirm": ("COVID-19-Radiography-Database/COVID-19", "COVID-19 Radiography Database/COVID-19"),
    "rsna": ("rsna-pneumonia-detection-challenge/stage_2_train_images",),
}
#: Collection -> the set whose names of patients it uses, so that a patient in both is one. Others are COVIDx's own.
PATIENTS_OF = {"cohen": "cohen", "fig1": "figure1", "actmed": "actualmed", "rsna": "rsna"}
_VERSIONS = ("", *(f"_COVIDx{version}" for version in ("2", "3", "4", "5", "6", "7A", "7B", "8A", "8B", "9A", "9B")))
TABLES = {
    f"{folder}{split}{version}.txt": Table("file", columns=("patient", "file"), exact=True)
    for folder in ("", "labels/")
    for split in ("train", "test", "val")
    for version in (*_VERSIONS, "_COVIDx_CXR-3A", "_COVIDx_CXR-3B", "_split_v1")
}
_NUMBERED = re.compile(r"^(?P<stem>.*\S)\s*\((?P<number>\d+)\)$")


def _places(root: Path, entry: Entry) -> Iterator[Path]:
    """Where an image may lie, in order."""
    for base in (root, root / "data"):
        yield base / entry.split / entry.file
    names = [entry.file]
    if entry.collection == "rsna":
        names = [f"{entry.patient}.dcm"]
    elif entry.collection == "sirm" and (match := _NUMBERED.match(Path(entry.file).stem)):
        # The lists name these without the blank that the database's own files have.
        names.append(f"{match['stem']} ({match['number']}){Path(entry.file).suffix}")
    for folder in FOLDERS.get(entry.collection, ()):
        for name in names:
            yield root / folder / name


def _metadata(root: Path) -> dict[str, CohenRecord]:
    table = root / "covid-chestxray-dataset" / "metadata.csv"
    return dict(reversed(read_lines(table))) if table.is_file() else {}


def _patient(entry: Entry, nih: dict[str, str]) -> tuple[str, str | None]:
    """The patient of a line, and whose name that is; None is COVIDx's own."""
    if entry.collection == "fig1":
        return patient_of(entry.patient), PATIENTS_OF["fig1"]
    if entry.collection == "rsna" and entry.patient in nih:
        return nih[entry.patient], "nih"
    return entry.patient, PATIENTS_OF.get(entry.collection)


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per line of the lists whose image is there, one reject for each other.

    Raises:
        DataError: lists are missing, are of several versions, or hold a line of another form.
    """
    lists = find_lists(root)
    require(root, INFO, *(f"{split}_COVIDx5.txt" for split in ("train", "test") if split not in lists))
    known, seen = _metadata(root), set()
    nih = nih_patients(root / "rsna-pneumonia-detection-challenge" / MAPPING)
    for split, file in lists.items():
        for entry in read_list(file, split, LABELS):
            key = f"{split}/{entry.file}"
            if key in seen:
                yield Reject(key, "listed_twice", "the first line that names it counts")
                continue
            seen.add(key)
            path = next((place for place in _places(root, entry) if place.is_file()), None)
            if path is None:
                where = FOLDERS.get(entry.collection, ("",))[0]
                detail = f"it is not in {split}/" + (f" and not in {where}/" if where else "")
                yield Reject(key, "missing_file", detail)
                continue
            cohen = known.get(entry.file) if entry.collection == "cohen" else None
            patient, whose = _patient(entry, nih)
            yield Row(
                key=key,
                path=path,
                modality="cxr",
                label=LABELS[entry.label],
                patient=patient,
                patient_source=whose,
                view=cohen.view if cohen else None,
                sex=cohen.sex if cohen else None,
                age=cohen.age if cohen else None,
                site=entry.collection,
                official_split="tune" if split == "val" else split,
                licence=cohen.licence if cohen else None,
                commercial_use=cohen.commercial_use if cohen else None,
            )
