"""Regions of masks and maps: thresholds, largest components, inclusive bounding boxes, crops.

One implementation for lungs, for attention maps (paper 001's crops) and for heat maps (paper 003's infected branch).
Boxes are inclusive on both ends, one ``(first, last)`` per axis; an empty region falls back to the whole picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Box = tuple[tuple[int, int], ...]


def threshold(values: NDArray, share_of_peak: float) -> NDArray[np.bool_]:
    """True where ``values`` reach ``share_of_peak`` of their maximum; nowhere if none is above zero.

    Args:
        values: any shape, zero meaning nothing there.
        share_of_peak: in (0, 1].

    Raises:
        ValueError: the share is outside its range.
    """
    if not 0 < share_of_peak <= 1:
        raise ValueError(f"share_of_peak is {share_of_peak}; it must be above 0 and at most 1")
    peak = float(np.max(values)) if values.size else 0.0
    return values >= share_of_peak * peak if peak > 0 else np.zeros(values.shape, dtype=bool)


def largest_components(mask: NDArray[np.bool_], count: int = 1, min_share: float = 0.0) -> list[NDArray[np.bool_]]:
    """The ``count`` largest components, largest first, face-connected; equal sizes keep the scan's order.

    Args:
        mask: (H, W) or (D, H, W).
        count: how many at most.
        min_share: components smaller than this share of the largest are left out.

    Returns:
        Up to ``count`` masks of the same shape; an empty list for an empty mask.
    """
    labels, found = ndimage.label(mask)
    if found == 0:
        return []
    sizes = np.bincount(labels.ravel())[1:]
    order = np.argsort(-sizes, kind="stable")[:count]
    return [labels == index + 1 for index in order if sizes[index] >= min_share * sizes[order[0]]]


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest component; all False for an empty mask."""
    parts = largest_components(mask, 1)
    return parts[0] if parts else np.zeros(mask.shape, dtype=bool)


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """Smallest inclusive box around True; the whole picture for an empty mask."""
    if not mask.any():
        return tuple((0, size - 1) for size in mask.shape)
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append((int(hit[0]), int(hit[-1])))
    return tuple(box)


def grow(box: Box, margin: int, shape: tuple[int, ...]) -> Box:
    """The box with ``margin`` more on every side, kept inside ``shape``."""
    return tuple((max(0, a - margin), min(size - 1, b + margin)) for (a, b), size in zip(box, shape, strict=True))


def crop(values: NDArray, box: Box) -> NDArray:
    """A view of ``values`` inside an inclusive box."""
    return values[slices(box)]


def slices(box: Box) -> tuple[slice, ...]:
    """Index an array by an inclusive box."""
    return tuple(slice(first, last + 1) for first, last in box)


def edge_map(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Border of a mask: its dilation without its erosion, by a square (cube) of side 3.

    Two pixels wide, one on each side of the border. The picture's own rim is no border, so a full mask has none, as has
    an empty one.

    Args:
        mask: (H, W) or (D, H, W).
    """
    mask = np.asarray(mask, dtype=bool)
    square = np.ones((3,) * mask.ndim, dtype=bool)
    edge: NDArray[np.bool_] = ndimage.binary_dilation(mask, square) & ~ndimage.binary_erosion(
        mask, square, border_value=1
    )
    return edge
