"""Sampling grids in millimetres, and random fields that do not depend on how finely they are sampled.

Axes are (z, y, x): z ascends towards the head, y towards the back, x towards the patient's left; the origin is the
middle of the field of view. All arithmetic is float64: transcendental functions differ in the last bit between
processors, and in float32 such a bit would change quantised grey values, and so the bytes of the files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Voxels of a volume.

    Attributes:
        shape: voxels (z, y, x).
        extent_mm: field of view (z, y, x).
    """

    shape: tuple[int, int, int]
    extent_mm: tuple[float, float, float]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x)."""
        z, y, x = (mm / count for mm, count in zip(self.extent_mm, self.shape, strict=True))
        return z, y, x

    def axes(self) -> tuple[Field, Field, Field]:
        """Voxel centres in mm, shaped (Z, 1, 1), (1, Y, 1) and (1, 1, X) so that they broadcast."""
        z, y, x = (
            (np.arange(count, dtype=np.float64) + 0.5) * (mm / count) - mm / 2
            for count, mm in zip(self.shape, self.extent_mm, strict=True)
        )
        return z[:, None, None], y[None, :, None], x[None, None, :]


def interpolation(cells: int, count: int) -> Field:
    """Matrix (count, cells) of smooth (Catmull-Rom) interpolation from ``cells`` knots to ``count`` samples."""
    place = (np.arange(count) + 0.5) / count * (cells - 1)
    first = np.minimum(place.astype(np.intp), cells - 2)
    t = place - first
    weights = (
        (-t + 2 * t**2 - t**3) / 2,
        (2 - 5 * t**2 + 3 * t**3) / 2,
        (t + 4 * t**2 - 3 * t**3) / 2,
        (-(t**2) + t**3) / 2,
    )
    matrix = np.zeros((count, cells))
    for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
        np.add.at(matrix, (np.arange(count), np.clip(first + offset, 0, cells - 1)), weight)
    return matrix


def smooth_noise(rng: np.random.Generator, cells: tuple[int, int, int], shape: tuple[int, int, int]) -> Field:
    """A random field of about unit deviation whose knots, and so its shape in mm, do not depend on ``shape``."""
    knots = rng.standard_normal(cells)
    for axis, count in enumerate(shape):
        knots = np.moveaxis(np.tensordot(interpolation(cells[axis], count), knots, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(knots)


def pair_means(volume: Field) -> Field:
    """Average neighbouring planes along z: a thick CT slice from two thin ones."""
    return (volume[0::2] + volume[1::2]) / 2
