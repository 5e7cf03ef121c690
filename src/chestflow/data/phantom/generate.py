"""Compute and write the cohort, patient by patient, over all cores."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestflow.data.phantom import anatomy, modalities, writing
from chestflow.data.phantom.cohort import Patient, Study, draw
from chestflow.data.phantom.grid import Grid
from chestflow.data.phantom.layout import LICENCE, TABLE
from chestflow.errors import ConfigError, DataError
from chestflow.parallel import ordered_map

SEED = 20
PATIENTS = 200
#: Of the cohort of profile phantom_large: more than 300 volumes of infected lungs, and none of the embedded patients.
LARGE_SEED = 21
LARGE_PATIENTS = 320
SHAPE = (48, 96, 96)
README = "README.txt"
FIRST_LINE = "SYNTHETIC chest phantoms made by `chestflow data phantom`"

COLUMNS = (
    "path", "modality", "label", "patient", "study", "sex", "age", "site", "view",
    "lung_mask", "infection_mask", "ratio", "level", "marker", "split",
)  # fmt: skip


def write_cohort(
    out: Path,
    patients: int = PATIENTS,
    seed: int = SEED,
    shape: tuple[int, int, int] = SHAPE,
    shortcut: float = 0.0,
    workers: int | None = None,
) -> pd.DataFrame:
    """Write the cohort's folder: README.txt, images.csv, ct/, slices/, xray/. An older cohort there is replaced.

    Args:
        patients: how many; at least one of each class.
        seed: of everything.
        shape: voxels (z, y, x) of the CT volumes; the field of view stays.
        shortcut: 0, or how often, 0.5 to 1, a burnt-in marker tells rightly whether a patient has COVID-19.
        workers: processes; None takes one per core.

    Returns:
        The table images.csv.

    Raises:
        ConfigError: an impossible option.
        DataError: ``out`` holds something else.
    """
    if min(shape) < 24:
        raise ConfigError(f"--grid is {shape}; each side needs at least 24 voxels for lungs to be recognised")
    people = draw(patients, seed, shortcut)
    _require_ours(out)
    making = out.parent / f".{out.name}.partial"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        rows = [row for part in ordered_map(partial(_write_patient, folder=making, shape=shape), people, workers, 2)
                for row in part]  # fmt: skip
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        (making / TABLE).write_text(table.to_csv(index=False, lineterminator="\n"))
        (making / README).write_text(_readme(people, seed, shape, shortcut))
        if out.exists():
            shutil.rmtree(out)
        making.rename(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return table


def _require_ours(out: Path) -> None:
    """Refuse to replace a folder that is not a phantom cohort."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    readme = out / README
    if not readme.is_file() or not readme.read_text(errors="replace").startswith(FIRST_LINE):
        raise DataError(f"{out} exists and is not a phantom cohort: choose another --out or remove it")


def _write_patient(patient: Patient, folder: Path, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """All studies of a patient; runs in a worker. Returns rows of images.csv."""
    return [row for study in patient.studies for row in _write_study(patient, study, folder, shape)]


def _write_study(patient: Patient, study: Study, folder: Path, shape: tuple[int, int, int]) -> Iterator[dict[str, Any]]:
    fine = Grid((2 * shape[0], shape[1], shape[2]), patient.site.extent_mm)
    thorax = anatomy.build(patient, study, fine)
    name = f"{patient.name}_{study.number}"
    common = {
        "label": patient.label, "patient": patient.name, "study": name, "sex": patient.sex, "age": patient.age,
        "site": patient.site.name, "marker": int(study.marker), "split": "",
    }  # fmt: skip

    volume = modalities.ct(patient, study, thorax)
    base = f"ct/{name}"
    writing.write_nifti(folder / f"{base}.nii.gz", volume.hu, volume.spacing_mm)
    writing.write_nifti(folder / f"{base}_lung.nii.gz", volume.lung.astype(np.uint8), volume.spacing_mm)
    infection = f"{base}_infection.nii.gz" if volume.infection.any() else ""
    if infection:
        writing.write_nifti(folder / infection, volume.infection.astype(np.uint8), volume.spacing_mm)
    yield common | {
        "path": f"{base}.nii.gz", "modality": "ct_volume", "view": "", "lung_mask": f"{base}_lung.nii.gz",
        "infection_mask": infection, "ratio": round(volume.ratio, 6), "level": "",
    }  # fmt: skip

    for number, part in enumerate(modalities.slices(patient, study, volume), 1):
        base = f"slices/{name}_{number}"
        writing.write_png(folder / f"{base}.png", part.pixels)
        writing.write_png(folder / f"{base}_lung.png", part.lung)
        infection = f"{base}_infection.png" if part.infection.any() else ""
        if infection:
            writing.write_png(folder / infection, part.infection)
        yield common | {
            "path": f"{base}.png", "modality": "ct_slice", "view": "axial", "lung_mask": f"{base}_lung.png",
            "infection_mask": infection, "ratio": round(part.ratio, 6), "level": part.level,
        }  # fmt: skip

    picture = modalities.xray(patient, study, thorax)
    base = f"xray/{name}"
    writing.write_dicom(folder / f"{base}.dcm", picture, patient, study)
    writing.write_png(folder / f"{base}_lung.png", picture.lung)
    infection = f"{base}_infection.png" if picture.infection.any() else ""
    if infection:
        writing.write_png(folder / infection, picture.infection)
    yield common | {
        "path": f"{base}.dcm", "modality": "cxr", "view": patient.site.view, "lung_mask": f"{base}_lung.png",
        "infection_mask": infection, "ratio": round(picture.ratio, 6), "level": "",
    }  # fmt: skip


def _readme(people: list[Patient], seed: int, shape: tuple[int, int, int], shortcut: float) -> str:
    """What the folder holds, for whoever finds it without the project."""
    planted = f"planted; it tells the class in {shortcut:.0%} of the studies" if shortcut else "none"
    return f"""{FIRST_LINE}
Computed from a parametric thorax; no picture here is of a person or made from one. Not for medical use.
Licence: {LICENCE}

patients {len(people)}, studies {sum(len(person.studies) for person in people)}, seed {seed}, \
CT grid {shape[0]}x{shape[1]}x{shape[2]} (z, y, x), shortcut marker: {planted}

images.csv   one row per image or volume; paths are relative to this folder
  ratio      true infected share: of the lung volume (CT; X-ray: of the volume that it shows), of the lung area (slice)
  level      a slice's index in its CT volume; empty otherwise
  marker     1 where the shortcut marker is burnt in
  split      empty: the set has no official split
ct/          NAME.nii.gz in HU, NAME_lung.nii.gz, NAME_infection.nii.gz (only where there is infection)
slices/      axial slices of the volumes as PNG, window 1500/-600, with masks
xray/        frontal X-rays as DICOM, with projected masks
"""
