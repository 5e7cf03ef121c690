"""Reading one image of a set whole: what the manifest says about it, or why it cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chestflow.data.hashing import phash, sha256_files
from chestflow.data.identity import keyed_id
from chestflow.data.sources.base import Box, Row, SourceInfo
from chestflow.files import sha256_file
from chestflow.imaging.images import Radiograph, Unreadable, Volume, require_depth
from chestflow.imaging.read import OVERHANG, kind, read_mask, read_radiograph, read_volume

#: Ages above this are stored as 90: higher ones can single out a person.
OLDEST = 89.0
_UNITS_A_YEAR = {"Y": 1.0, "M": 12.0, "W": 52.1775, "D": 365.25}

Record = dict[str, Any]
#: (reason, detail)
Fault = tuple[str, str]


@dataclass(frozen=True)
class Task:
    """One row on its way through a worker."""

    image_id: str
    row: Row
    licence: str
    commercial_use: bool | None
    id_key: str


def task_of(row: Row, info: SourceInfo, id_key: str) -> Task:
    """Give a row its identity and its licence."""
    own = row.licence is not None
    return Task(
        image_id=keyed_id(info.name, "image", row.key, id_key),
        row=row,
        licence=row.licence if row.licence is not None else info.licence,
        commercial_use=row.commercial_use if own else info.commercial_use,
        id_key=id_key,
    )


def patient_id(row: Row, source: str, id_key: str) -> str | None:
    """The patient's keyed hash; the same in every set that took the patient from one collection."""
    return None if row.patient is None else keyed_id(row.patient_source or source, "patient", row.patient, id_key)


def examine(task: Task) -> tuple[Record | None, list[Fault]]:
    """Read an image and its masks; runs in a worker.

    Returns:
        The manifest's columns that the files decide, or None for an image that cannot be used; and the faults found.
        A faulty mask is a fault, and the image stays with that mask unknown.
    """
    try:
        return _examine(task)
    except Unreadable as error:
        return None, [(error.reason, error.detail)]
    except FileNotFoundError:
        return None, [("missing_file", "the file, or the target of its link, is not there")]
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # one odd file among thousands must not end the stage; its text may hold names
        return None, [("unsupported", f"the reader failed with {type(error).__name__}")]


def _examine(task: Task) -> tuple[Record, list[Fault]]:
    row = task.row
    if row.modality == "ct_volume":
        image: Volume | Radiograph = read_volume(row.reference)
        shape = image.hu.shape  # type: ignore[union-attr]
        require_depth(shape[0])
    else:
        image = read_radiograph(row.reference)
        shape = image.pixels.shape
    if 0 in shape:
        raise Unreadable("zero_size", f"the image is {' x '.join(map(str, shape))}")
    record: Record = {
        "width": shape[-1],
        "height": shape[-2],
        "depth": shape[0] if len(shape) == 3 else 1,
        "bits": image.bits,
        "color_mode": image.color_mode,
        "file_format": image.file_format,
        "phash": phash(image.uint8()) if isinstance(image, Radiograph) else None,
    }
    stated = isinstance(image, Radiograph) or image.spacing_stated
    spacing = row.spacing_mm or (image.spacing_mm if stated else None)
    record["spacing_mm"] = None if spacing is None else [float(step) for step in spacing]
    part = hashlib.sha256(image.pixels.tobytes()).hexdigest() if isinstance(image, Radiograph) and row.part else None
    del image
    # A slice of a volume's file is not the file: by the file's bytes all its slices would pass for copies.
    record |= {"sha256": part} if part else _from_header(task)
    faults: list[Fault] = []
    record["boxes"] = None if row.boxes is None else [list(box) for box in row.boxes]
    if row.boxes and (fault := _box_fault(row.boxes, shape)):
        faults.append(fault)
        record["boxes"] = None
    for column, references in (("lung_mask", row.lung_mask), ("infection_mask", row.infection_mask)):
        record[column] = list(references) or None
        if references and (fault := _mask_fault(references, shape, column)):
            faults.append(fault)
            record[column] = None
    return record, faults


def _from_header(task: Task) -> Record:
    """Hash of the content; and from a DICOM header what the set leaves open, its UIDs hashed."""
    path, key = task.row.path, task.id_key
    found = kind(path)
    if found == "series" and task.row.part:
        from chestflow.imaging.grey_volume import grey_slices

        return {"sha256": sha256_files(grey_slices(path))}
    if found == "series":
        from chestflow.imaging.series import read_series

        series = read_series(path)
        header = {"sex": series.sex, "age": series.age, "view": None, "study": series.study_uid}
        uid, digest = series.series_uid, sha256_files(series.files)
    elif found == "dicom":
        from chestflow.imaging.dicom import read_header

        tags = read_header(path)
        names = {"sex": "PatientSex", "age": "PatientAge", "view": "ViewPosition", "study": "StudyInstanceUID"}
        header = {name: str(tags.get(tag) or "") or None for name, tag in names.items()}
        uid, digest = str(tags.get("SeriesInstanceUID") or "") or None, sha256_file(path)
    else:
        return {"sha256": sha256_file(path)}
    age = years(header["age"])
    return {
        "sha256": digest,
        "series_uid": keyed_id("series", "series", uid, key) if uid else None,
        "header_study": keyed_id("study", "study", header["study"], key) if header["study"] else None,
        "header_sex": header["sex"],
        "header_age": age,
        "header_view": header["view"] if header["view"] in ("PA", "AP", "LL", "RL") else None,
    }


def years(text: str | None) -> float | None:
    """A DICOM age (``039Y``, ``006M``) in years; None where it is missing or malformed."""
    if not text or text[-1] not in _UNITS_A_YEAR or not text[:-1].isdigit():
        return None
    return round(int(text[:-1]) / _UNITS_A_YEAR[text[-1]], 2)


def _box_fault(boxes: Sequence[Box], shape: tuple[int, ...]) -> Fault | None:
    """Why boxes cannot be used: one of them is empty or lies beyond the picture."""
    height, width = shape[-2:]
    for x, y, across, down in boxes:
        beyond = min(x, y) < -OVERHANG or x + across > width + OVERHANG or y + down > height + OVERHANG
        if beyond or not (across > 0 and down > 0):
            place = f"{across:g} x {down:g} at ({x:g}, {y:g})"
            return "mask_size", f"box: {place} in a picture of {width} x {height}; the image is kept without its boxes"
    return None


def _mask_fault(references: tuple[str, ...], shape: tuple[int, ...], column: str) -> Fault | None:
    """Why a mask cannot be used; an infection mask without a pixel is a statement, a lung mask without one a fault."""
    name = column.replace("_", " ")
    kept = "the image is kept without it"
    try:
        inside = read_mask(references, shape)
    except Unreadable as error:
        return error.reason, f"{name}: {error.detail}; {kept}"
    except FileNotFoundError:
        return "missing_file", f"{name}: the file is not there; {kept}"
    if column == "lung_mask" and not np.any(inside):
        return "empty_mask", f"{name}: no pixel is inside; {kept}"
    return None
