"""What the yardsticks look at: small pictures and plain numbers of a cohort, computed without writing it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from chestflow.data.phantom import anatomy, modalities
from chestflow.data.phantom.cohort import Patient, draw
from chestflow.data.phantom.grid import Grid
from chestflow.data.recipes import nearest, resample, resize_plane
from chestflow.parallel import ordered_map

Shape = tuple[int, int, int]


class Cohort(NamedTuple):
    """A row of ``table`` per study; ``xrays`` (N, 96, 96) uint8; ``volumes`` (N, D, H, W) uint8, lung-masked."""

    table: pd.DataFrame
    xrays: np.ndarray
    volumes: np.ndarray


def _of_patient(patient: Patient, shape: Shape, packed: Shape) -> list[tuple[dict, np.ndarray, np.ndarray]]:
    found = []
    for study in patient.studies:
        grid = Grid((2 * shape[0], shape[1], shape[2]), patient.site.extent_mm)
        thorax = anatomy.build(patient, study, grid)
        volume, picture = modalities.ct(patient, study, thorax), modalities.xray(patient, study, thorax)
        grey = picture.pixels.astype(np.float64)
        grey = (grey - grey.min()) / (grey.max() - grey.min()) * 255
        row = {
            "label": patient.label,
            "patient": patient.name,
            "site": patient.site.name,
            "sex": patient.sex,
            "age": patient.age,
            "ct_ratio": volume.ratio,
            "xray_ratio": picture.ratio,
            "ct_mean": float(volume.hu[volume.lung].mean()),
            "xray_mean": float(grey[picture.lung].mean()),
        }
        extent = np.array(volume.hu.shape) * volume.spacing_mm
        content = tuple(np.round(extent * min(np.array(packed) / extent)).astype(int))
        window = np.clip((resample(volume.hu, content) + 1350) / 1500, 0, 1) * 255
        window *= nearest(volume.lung.astype(np.uint8), content)
        small = np.zeros(packed, np.uint8)
        place = tuple(slice((w - c) // 2, (w - c) // 2 + c) for w, c in zip(packed, content, strict=True))
        small[place] = np.rint(window)
        found.append((row, resize_plane(np.rint(grey).astype(np.uint8), (96, 96)), small))
    return found


def compute(patients: int, seed: int, shape: Shape, packed: Shape = (32, 64, 64), workers: int | None = None) -> Cohort:
    """Compute a cohort on a grid; ``packed`` is the size of the volumes that networks see."""
    work = partial(_of_patient, shape=shape, packed=packed)
    studies = [study for part in ordered_map(work, draw(patients, seed), workers, 2) for study in part]
    rows, xrays, volumes = zip(*studies, strict=True)
    return Cohort(pd.DataFrame(list(rows)), np.stack(xrays), np.stack(volumes))
