"""COVID-Xray-5k (shervinmin/DeepCovid): Cohen's COVID-19 X-rays against CheXpert's; paper 002 uses it.

Layout, read from DeepCovid's data/readme.md, ResNet18_train.py and Inference.py, and from notebooks that unpack its
archive: ``train/`` and ``test/`` (and ``val/``, where a user made one), each with ``covid/`` and ``non/``; the folder
``data`` or ``data_upload_v*`` of the archive may lie above. ``non/`` of the test holds folders by CheXpert finding as
well. A CheXpert name is ``[<finding>-]patient<number>-study<n>-view<n>_<side>.jpg``; a COVID name carries no patient:
Cohen's metadata.csv gives it, by the file's stem, where the table lies in the set's folder. Copies that the library
Augmentor wrote are rejected: the paper counts them (420 of 84 images), a split must not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from chestflow.data.cohen_metadata import read_metadata
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, pictures, require

INFO = SourceInfo(
    name="covid_xray_5k",
    title="COVID-Xray-5k",
    modalities=("cxr",),
    classes=("non_covid", "covid19"),
    published_counts={"non_covid": 5000, "covid19": 184},
    licence="none stated",
    commercial_use=None,
    link="https://github.com/shervinmin/DeepCovid/tree/master/data",
)
SPLITS = {"train": "train", "val": "tune", "test": "test"}
LABELS = {"covid": "covid19", "non": "non_covid"}
TABLES = {"metadata.csv": Table("filename", "patientid", "cohen")}
_CHEXPERT = re.compile(r"patient(?P<patient>\d{5,})-(?P<study>study\d+)-view\d+_(?P<side>frontal|lateral)")
#: Augmentor names a copy ``<folder>_original_<file>_<UUID>.<ending>``.
_AUGMENTED = re.compile(r"_original_.*_[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")


def _base(root: Path) -> Path:
    """The folder that holds train/ and test/: the set's own, or the archive's in it."""
    inside = [root, root / "data", *sorted(root.glob("data_upload_v*"))]
    return next((folder for folder in inside if (folder / "train").is_dir()), root)


def _images(folder: Path) -> Iterator[Path]:
    """Files of a class folder, and of the folders by finding in it."""
    yield from pictures(folder)
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        yield from pictures(inner)


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per original image of the splits' class folders."""
    base = _base(root)
    require(base, INFO, *(f"{split}/{name}" for split in ("train", "test") for name in LABELS))
    table = root / "metadata.csv"
    known = read_metadata(table) if table.is_file() else {}
    folders = [(split, name) for split in SPLITS for name in LABELS if (base / split / name).is_dir()]
    for split, name in folders:
        for path in _images(base / split / name):
            key = path.relative_to(root).as_posix()
            if _AUGMENTED.search(path.stem):
                yield Reject(key, "derived_copy", "Augmentor made it of another image of the set")
                continue
            cohen = known.get(path.stem) if name == "covid" else None
            chexpert = _CHEXPERT.search(path.stem) if name == "non" else None
            patient = cohen.patient if cohen else f"patient{chexpert['patient']}" if chexpert else None
            yield Row(
                key=key,
                path=path,
                modality="cxr",
                label=LABELS[name],
                patient=patient,
                patient_source=None if patient is None else "cohen" if cohen else "chexpert",
                study=f"{patient}/{chexpert['study']}" if chexpert else None,
                view=cohen.view if cohen else "L" if chexpert and chexpert["side"] == "lateral" else None,
                sex=cohen.sex if cohen else None,
                age=cohen.age if cohen else None,
                site="cohen" if name == "covid" else "chexpert",
                official_split=SPLITS[split],
                licence=cohen.licence if cohen else None,
                commercial_use=cohen.commercial_use if cohen else None,
            )
