"""Names of CT volumes: those of coronacases.org and Radiopaedia, from which several public sets took theirs.

The same volume is ``coronacases_org_001``, ``coronacases_001``, ``coronacases_org_case007`` or ``case009``, and
``radiopaedia_org_covid-19-pneumonia-10_85902_3-dcm`` or ``radiopaedia_10_85902_3``: Radiopaedia's case, study and
series. Forms read from ``Data-1_*`` in COVID-SemiSeg and from loaders of Zenodo's record 3757476 and of its mirror on
Kaggle.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from chestflow.data.sources.base import pictures

_CORONACASES = re.compile(r"^(?:coronacases_(?:org_)?)?(?:case)?(?P<case>\d{3})$")
_RADIOPAEDIA = re.compile(
    r"^radiopaedia_(?:org_covid-19-pneumonia-)?(?P<case>\d+)_(?P<study>\d+)_(?P<series>\d+)(?:-dcm)?$"
)


@dataclass(frozen=True)
class CollectedVolume:
    """Whose volume it is."""

    collection: str  # coronacases | radiopaedia
    patient: str  # the collection's case: two studies of one case are of one patient
    name: str  # the same for every form of its name


def volume_named(stem: str) -> CollectedVolume | None:
    """The volume that a file's name without ending stands for; None for a name of another form."""
    if match := _CORONACASES.match(stem):
        return CollectedVolume("coronacases", match["case"], f"coronacases_{match['case']}")
    if match := _RADIOPAEDIA.match(stem):
        case = match["case"]
        return CollectedVolume("radiopaedia", case, f"radiopaedia_{case}_{match['study']}_{match['series']}")
    return None


def nifti_stem(path: Path) -> str:
    """A NIfTI file's name without ``.nii`` or ``.nii.gz``."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def nifti_files(folder: Path) -> list[Path]:
    """The NIfTI files of a folder in order of name; none where there is no folder."""
    return [path for path in pictures(folder) if path.name.endswith((".nii", ".nii.gz"))] if folder.is_dir() else []


def volumes_in(folder: Path | None) -> dict[str, Path]:
    """Name of the volume, whatever its form -> its file."""
    found = {}
    for path in [] if folder is None else nifti_files(folder):
        volume = volume_named(nifti_stem(path))
        found[volume.name if volume else nifti_stem(path)] = path
    return found
