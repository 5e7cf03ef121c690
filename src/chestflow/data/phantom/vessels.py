"""Lung vessels: bent tubes from the hilum towards the pleura, thinning on their way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from chestflow.data.phantom.grid import Field, Grid

if TYPE_CHECKING:
    from chestflow.data.phantom.anatomy import Body

PER_LUNG = 26
STEPS = 64
SPREAD = 10


def vessel_fraction(rng: np.random.Generator, body: Body, grid: Grid) -> Field:
    """Share of each voxel that is vessel, in [0, 1].

    Points spread over the cross-section of every tube carry its volume; each is shared among the eight voxels
    around it, so that a vessel thinner than a voxel shows as faint as it would on a scanner.
    """
    count = 2 * PER_LUNG
    side = np.where(np.arange(count) < PER_LUNG, -1.0, 1.0)
    start = np.stack([np.full(count, -6.0), np.full(count, 8.0), 28 * side], axis=1)
    start += rng.normal(0, 8, (count, 3))
    direction = rng.standard_normal((count, 3))
    direction /= np.sqrt((direction**2).sum(1, keepdims=True))
    end = np.stack([-22 + 118 * direction[:, 0], 5 + 80 * direction[:, 1], side * 71 + 52 * direction[:, 2]], axis=1)
    bend = (start + end) / 2 + rng.normal(0, 16, (count, 3))
    thick, thin = rng.uniform(2.4, 4.6, count), rng.uniform(0.7, 1.3, count)
    t = (np.arange(STEPS) + 0.5)[None, :, None] / STEPS
    path = (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * bend[:, None] + t**2 * end[:, None]  # (count, STEPS, 3)
    length = np.sqrt((np.diff(path, axis=1) ** 2).sum(2)).sum(1)
    radius = thick[:, None] * (1 - t[..., 0]) ** 1.3 + thin[:, None]
    volume = np.pi * radius**2 * (length / STEPS)[:, None] / SPREAD
    points = path[:, :, None] + radius[:, :, None, None] * rng.normal(0, 0.45, (count, STEPS, SPREAD, 3))
    dz, dy, dx = body.shift_mm
    cos, sin = np.cos(body.tilt), np.sin(body.tilt)
    z, y, x = points[..., 0] * body.height, points[..., 1] * body.depth, points[..., 2] * body.width
    placed = (cos * z + sin * x + dz, y + dy, -sin * z + cos * x + dx)
    deposited = _deposit(placed, np.broadcast_to(volume[..., None], z.shape), grid)
    return np.clip(deposited / np.prod(grid.spacing_mm), 0, 1)


def _deposit(points: tuple[Field, Field, Field], weights: Field, grid: Grid) -> Field:
    """Sum of point weights per voxel, each point shared linearly among its eight neighbours."""
    total = np.zeros(int(np.prod(grid.shape)))
    low, share = [], []
    for place, count, mm, step in zip(points, grid.shape, grid.extent_mm, grid.spacing_mm, strict=True):
        index = np.clip((place.ravel() + mm / 2) / step - 0.5, 0, count - 1.000001)
        low.append(index.astype(np.intp))
        share.append(index - low[-1])
    for corner in range(8):
        up = [(corner >> 2) & 1, (corner >> 1) & 1, corner & 1]
        flat = np.ravel_multi_index([at + step for at, step in zip(low, up, strict=True)], grid.shape)
        part = weights.ravel().copy()
        for weight, step in zip(share, up, strict=True):
            part *= weight if step else 1 - weight
        total += np.bincount(flat, part, minlength=total.size)
    return total.reshape(grid.shape)
