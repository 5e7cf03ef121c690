"""Dense lesions at the chest wall, which a threshold takes for wall: the lung's convex outline brings them back.

The side wall of the chest bends outwards, so a dent in a lung's outline there is no anatomy. The dents of the heart, of
the vessels' root and of the spine lie on the other side, and the dome of the diaphragm below. So a plane, axial or
coronal, gives what lies within the lung's convex outline, has lung between itself and the body's middle, and none
between itself and the side wall. Thin seams are left out: a healthy wall is not perfectly convex. A lobe that is solid
as a whole leaves no dent, and is not found.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from chestflow.imaging.regions import bounding_box, slices

#: A dent must hold a disc of this radius in its axial slice; measured on phantoms, where it keeps healthy lungs as
#: they were. Smaller ones are the closing's.
SEAM_MM = 6.0


def convex_outline(plane: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The smallest convex region around True, (H, W); all False for an empty plane."""
    outline = np.zeros(plane.shape, dtype=np.uint8)
    y, x = np.nonzero(plane)
    if len(x):
        cv2.fillConvexPoly(outline, cv2.convexHull(np.stack([x, y], 1).astype(np.int32)), 1)
    return outline > 0


def side_dents(plane: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Dents in the outline of one lung in one plane, on the side of the chest wall.

    Args:
        plane: (H, W), one lung; the body's middle lies towards column 0.

    Returns:
        (H, W), without the lung itself.
    """
    from_middle = np.logical_or.accumulate(plane, axis=1)
    from_wall = np.logical_or.accumulate(plane[:, ::-1], axis=1)[:, ::-1]
    dents: NDArray[np.bool_] = convex_outline(plane) & from_middle & ~from_wall
    return dents


def disc(radius_mm: float, spacing: tuple[float, float]) -> NDArray[np.uint8]:
    """A disc in a plane of unequal (y, x) spacing; a single pixel where these are larger than its radius."""
    reach = [int(radius_mm / mm) for mm in spacing]
    y, x = np.ogrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    return ((y * spacing[0]) ** 2 + (x * spacing[1]) ** 2 <= radius_mm**2).astype(np.uint8)


def with_dents(
    lung: NDArray[np.bool_], middle_left: bool, spacing: tuple[float, float, float], seam_mm: float = SEAM_MM
) -> NDArray[np.bool_]:
    """One lung with the dents that lesions make at its wall.

    Args:
        lung: (D, H, W).
        middle_left: the body's middle lies towards column 0.
        spacing: (z, y, x) in mm.
        seam_mm: what holds no disc of this radius is no lesion.

    Returns:
        (D, H, W).
    """
    if not lung.any():
        return lung
    place = slices(bounding_box(lung))  # the outline lies within the box
    part = lung[place] if middle_left else lung[place][:, :, ::-1]
    dents = np.zeros_like(part)
    for plane, found in zip(part, dents, strict=True):
        found[:] = side_dents(plane)
    for y in range(part.shape[1]):
        dents[:, y] |= side_dents(part[:, y])
    kernel = disc(seam_mm, spacing[1:])
    for z in np.flatnonzero(dents.any(axis=(1, 2))):
        opened = cv2.morphologyEx(dents[z].astype(np.uint8), cv2.MORPH_OPEN, kernel, borderType=cv2.BORDER_CONSTANT)
        dents[z] = opened > 0
    whole = lung.copy()
    whole[place] |= dents if middle_left else dents[:, :, ::-1]
    return whole


def with_wall_lesions(
    lungs: list[NDArray[np.bool_]], body: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> list[NDArray[np.bool_]]:
    """Each lung with its dents; one region may be two lungs that touch, and is cut at the body's middle first.

    Args:
        lungs: up to two of (D, H, W).
        body: (D, H, W), what is not air.
        spacing: (z, y, x) in mm.
    """
    columns = np.arange(body.shape[2])

    def centre(mask: NDArray[np.bool_]) -> float:
        weight = mask.sum(axis=(0, 1))
        return float((weight * columns).sum() / max(1, weight.sum()))

    if len(lungs) == 2:
        middle = (centre(lungs[0]) + centre(lungs[1])) / 2
        return [with_dents(lung, centre(lung) > middle, spacing) for lung in lungs]
    left_of = columns > centre(body)  # the middle lies to the left of these columns
    return [with_dents(lung & left_of, True, spacing) | with_dents(lung & ~left_of, False, spacing) for lung in lungs]
