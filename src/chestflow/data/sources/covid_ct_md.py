"""COVID-CT-MD: thin-slice chest CT as JPEG-lossless DICOM, a folder per patient in a folder per class.

Layout, read from the repository's README and its files: ``COVID-19 subjects/P001/``, ``Cap subjects/cap001/`` and
``Normal subjects/normal001/`` (some copies say ``CAP``, or ``Cases`` for ``subjects``); beside them ``Index.csv``
(Label Index, Diagnosis, Relative Path, Folder/ID), ``Slice-level-labels.npy`` (patients, slices) and
``Lobe-level-labels.npy`` (patients, slices, lobes LLL, LUL, RLL, RML, RUL) for 54 or 55 patients with COVID-19 and 25
with CAP. Index.csv passes over number 43: where the arrays have a row fewer than its highest number asks for, rows
follow its lines.

Folder names (``P001``, ``cap001``, ``normal001``) are the set's own pseudonyms; the slices' names and headers hold
codes that look like a hospital's, so nothing of them leaves ingest. Slices are sorted and spaced by position: names and
InstanceNumber are out of order, and SliceThickness is not the distance between slices. The labels count slices by
SliceLocation, ascending, which here is the position; a folder with fewer slices than they reach keeps none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from chestflow.data.manifest import LOBES
from chestflow.data.source_tables import read_lines
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, require
from chestflow.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
INDEX, SLICES, LOBE_SLICES = "Index.csv", "Slice-level-labels.npy", "Lobe-level-labels.npy"
TABLES = {INDEX: Table("Folder/ID", "Folder/ID")}

Labels = tuple[tuple[int, ...], tuple[str, ...] | None]


def _class_folder(root: Path, name: str) -> Path | None:
    """The folder of a class, however a copy spells it."""
    wanted = {name.lower(), name.lower().replace("subjects", "cases")}
    return next((path for path in sorted(root.iterdir()) if path.is_dir() and path.name.lower() in wanted), None)


def _array(path: Path, dimensions: int) -> NDArray[np.integer] | None:
    import numpy as np

    if not path.is_file():
        return None
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise DataError(f"{path} is not a readable NumPy array: get it again from {INFO.link}") from None
    if array.ndim != dimensions or (dimensions == 3 and array.shape[2] != len(LOBES)):
        raise DataError(f"{path} has the shape {array.shape}, not that of {INFO.title}: get it again from {INFO.link}")
    return array


def read_labels(root: Path) -> dict[str, Labels]:
    """Patient's folder -> its slices with infection, from 0 at the feet, and its lobes with infection (None: unknown).

    Raises:
        DataError: a table or array is damaged, or they do not belong together.
    """
    slices = _array(root / SLICES, 2)
    if slices is None or not (root / INDEX).is_file():
        return {}
    lobes = _array(root / LOBE_SLICES, 3)
    lines = list(read_lines(root / INDEX, ("Label Index", "Folder/ID")))
    try:
        numbers = [int(line["Label Index"]) for line in lines]
    except ValueError:
        raise DataError(f"{root / INDEX}: a Label Index is no number; get it again from {INFO.link}") from None
    for name, array in ((SLICES, slices), (LOBE_SLICES, lobes)):
        if array is not None and len(array) < len(lines):
            raise DataError(f"{root / name} has {len(array)} rows, {INDEX} {len(lines)} lines: get both again")
    by_number = max(numbers, default=-1) < min(len(array) for array in (slices, lobes) if array is not None)
    found: dict[str, Labels] = {}
    for place, (number, line) in enumerate(zip(numbers, lines, strict=True)):
        at = number if by_number else place
        infected = tuple(int(i) for i in slices[at].nonzero()[0])
        where = None if lobes is None else tuple(lobe for i, lobe in enumerate(LOBES) if lobes[at, :, i].any())
        found[line["Folder/ID"]] = infected, where
    return found


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per patient folder; where a patient has several series, each lies in a folder of its own below it."""
    folders = {name: _class_folder(root, name) for name in LABELS}
    require(root, INFO, *(name for name, folder in folders.items() if folder is None))
    labels = read_labels(root)
    for name, label in LABELS.items():
        top = folders[name]
        assert top is not None  # require raises
        for patient in sorted(path for path in top.iterdir() if path.is_dir()):
            below = sorted(path for path in patient.iterdir() if path.is_dir())
            for folder in below or [patient]:
                infected, lobes = _of(labels.get(patient.name), folder, single=not below)
                yield Row(
                    key=folder.relative_to(root).as_posix(),
                    path=folder,
                    modality="ct_volume",
                    label=label,
                    patient=patient.name,
                    infected_slices=infected,
                    infected_lobes=lobes,
                )


def _of(found: Labels | None, folder: Path, *, single: bool) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None]:
    """What is known of a series: the labels are of a patient's one series."""
    if found is None or not single:
        return None, None
    there = sum(1 for path in folder.iterdir() if path.suffix.lower() == ".dcm")
    infected, lobes = found
    return (infected, lobes) if max(infected, default=-1) < there else (None, None)
