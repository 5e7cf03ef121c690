"""From a volume to the axial squares that a slice network sees, and from its answers back to the volume.

Each slice is cut to the box of the lungs in it, windowed to grey values, and brought to the network's square. Slices
without lung are not looked at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chestflow.data.recipes import resize_plane
from chestflow.imaging.regions import Box, bounding_box, grow, slices

MARGIN_MM = 5.0  # around the lungs, so that their edge is seen
SMALLEST_SHARE = 0.02  # of the largest slice's lung area; less is an edge of the lungs where a box is mostly wall


def grey(hu: NDArray[np.int16], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Hounsfield units to [0, 255] between the ends of a window, any shape."""
    low, high = window
    share = np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1)
    return np.rint(share * 255).astype(np.uint8)


def lung_boxes(lung: NDArray[np.bool_], spacing: tuple[float, float, float]) -> list[tuple[int, Box]]:
    """The slices that hold lung, lowest first, each with the box around its lungs.

    Args:
        lung: (D, H, W).
        spacing: (z, y, x) in mm.
    """
    area = lung.sum(axis=(1, 2))
    margin = max(1, round(MARGIN_MM / max(spacing[1:])))
    least = max(1.0, SMALLEST_SHARE * float(area.max(initial=0)))
    shape = (lung.shape[1], lung.shape[2])
    return [(int(z), grow(bounding_box(lung[z]), margin, shape)) for z in np.flatnonzero(area >= least)]


def choose(
    boxes: list[tuple[int, Box]], infection: NDArray[np.bool_], count: int, rng: np.random.Generator
) -> list[tuple[int, Box]]:
    """Up to ``count`` of the slices, in order: half from those with infection, the rest from all others.

    Args:
        boxes: as :func:`lung_boxes` gives them.
        infection: (D, H, W).
        count: how many.
        rng: which.
    """
    infected = [place for place, (z, _) in enumerate(boxes) if infection[z].any()]
    picked = {int(place) for place in rng.permutation(infected)[: -(-count // 2)]}
    rest = [place for place in range(len(boxes)) if place not in picked]
    picked |= {int(place) for place in rng.permutation(rest)[: count - len(picked)]}
    return [boxes[place] for place in sorted(picked)]


def squares(hu: NDArray[np.int16], boxes: list[tuple[int, Box]], size: int, window: tuple[float, float]) -> NDArray:
    """The slices inside their boxes, (N, S, S) uint8."""
    made = [resize_plane(grey(hu[z][slices(box)], window), (size, size)) for z, box in boxes]
    return np.stack(made) if made else np.zeros((0, size, size), np.uint8)


def mask_squares(mask: NDArray[np.bool_], boxes: list[tuple[int, Box]], size: int) -> NDArray[np.uint8]:
    """A mask's slices inside the same boxes, (N, 1, S, S), 0 or 255."""
    made = [resize_plane(mask[z][slices(box)].astype(np.float32), (size, size)) > 0.5 for z, box in boxes]
    return np.stack(made)[:, None].astype(np.uint8) * np.uint8(255) if made else np.zeros((0, 1, size, size), np.uint8)


def assemble(values: NDArray[np.float32], boxes: list[tuple[int, Box]], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Squares (N, S, S) back in their places, 0 elsewhere."""
    whole = np.zeros(shape, np.float32)
    for square, (z, box) in zip(values, boxes, strict=True):
        extent = tuple(last - first + 1 for first, last in box)
        whole[z][slices(box)] = resize_plane(square, extent)
    return whole
