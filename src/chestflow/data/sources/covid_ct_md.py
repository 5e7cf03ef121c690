"""COVID-CT-MD: thin-slice chest CT as JPEG-lossless DICOM, a folder per patient in a folder per class.

Folder names (``P001``, ``cap001``, ``normal001``) are the set's own pseudonyms; the slices' names and headers hold
codes that look like a hospital's, so nothing of them leaves ingest. Slices are sorted and spaced by position: names and
InstanceNumber are out of order, and SliceThickness is not the distance between slices.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chestflow.data.sources.base import Reject, Row, SourceInfo, require

INFO = SourceInfo(
    name="covid_ct_md",
    title="COVID-CT-MD",
    modalities=("ct_volume",),
    classes=("normal", "cap", "covid19"),
    published_counts={"normal": 76, "cap": 60, "covid19": 169},
    licence="none stated",
    commercial_use=None,
    link="https://github.com/ShahinSHH/COVID-CT-MD",
)
LABELS = {"COVID-19 subjects": "covid19", "Cap subjects": "cap", "Normal subjects": "normal"}


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per patient folder; where a patient has several series, each lies in a folder of its own below it."""
    require(root, INFO, *LABELS)
    for name, label in LABELS.items():
        for patient in sorted(path for path in (root / name).iterdir() if path.is_dir()):
            below = sorted(path for path in patient.iterdir() if path.is_dir())
            for folder in below or [patient]:
                yield Row(
                    key=folder.relative_to(root).as_posix(),
                    path=folder,
                    modality="ct_volume",
                    label=label,
                    patient=patient.name,
                )
