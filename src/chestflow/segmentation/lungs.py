"""Lungs on CT by threshold: what is air-like and inside the body, its two largest parts with their lobes, closed.

No training and no data needed, so it stands where no learned segmenter may be used. Small vessels and lesions inside
the lungs are taken back in by the closing and by filling holes, and a dense lesion at the chest wall by the convex
outline of its lung there (:mod:`.wall`). What is denser than that, a whole lobe, stays out, which is why known
infections are added to the lungs afterwards (:mod:`.run`). The large airways count as lung.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import isotropic_closing
from skimage.segmentation import clear_border

from chestflow.imaging.regions import bounding_box, largest_components, slices
from chestflow.segmentation.wall import with_wall_lesions

#: A part below this share of the largest is not lung: bowel gas, the windpipe, a fold of clothing. Two lungs that touch
#: count as one part, and then there is no second lung to find.
SMALLEST = 0.1
#: Two lungs, and as many pieces as their lobes when a consolidation or a thick fissure cuts one off.
MOST = 5


def find_lungs(inside: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The two largest parts, each with the cut-off lobes that lie on its side.

    Args:
        inside: (D, H, W), air-like and inside the body.

    Returns:
        Up to two masks of that shape.
    """
    parts = largest_components(inside, MOST, SMALLEST)
    lungs = parts[:2]
    middle = [float(np.flatnonzero(part.any(axis=(0, 1))).mean()) for part in parts]
    for part, x in zip(parts[2:], middle[2:], strict=True):
        side = 0 if abs(x - middle[0]) <= abs(x - middle[1]) else 1
        lungs[side] = lungs[side] | part
    return lungs


def segment_ct(
    hu: NDArray[np.int16],
    spacing: tuple[float, float, float],
    threshold_hu: float = -320.0,
    closing_mm: float = 8.0,
    convex_wall: bool = True,
) -> NDArray[np.bool_]:
    """Mask of both lungs.

    Args:
        hu: (D, H, W) in Hounsfield units.
        spacing: (z, y, x) in mm.
        threshold_hu: below it is air-like; between air and soft tissue.
        closing_mm: radius of the closing ball; 0 leaves it out.
        convex_wall: take dense lesions at the chest wall back in.

    Returns:
        (D, H, W); all False where nothing air-like lies inside a body.

    Raises:
        ValueError: not a volume.
    """
    if hu.ndim != 3:
        raise ValueError(f"expected a volume (D, H, W), got shape {hu.shape}")
    # slice by slice: in 3D the lungs of a cropped scan touch the first or last slice and would be cleared as well
    inside = np.stack([clear_border(plane) for plane in hu < threshold_hu])
    lungs = np.zeros(hu.shape, dtype=bool)
    found = find_lungs(inside)
    if convex_wall:
        found = with_wall_lesions(found, hu > threshold_hu, spacing)
    # each lung by itself: closing both at once would bridge the gap between them in front of the heart
    for lung in found:
        margin = [int(np.ceil(closing_mm / mm)) + 1 for mm in spacing]
        box = tuple(
            (max(0, first - more), min(size - 1, last + more))
            for (first, last), more, size in zip(bounding_box(lung), margin, hu.shape, strict=True)
        )
        place = slices(box)
        part = lung[place]
        if closing_mm > 0:
            part = isotropic_closing(part, closing_mm, spacing=spacing)
        # in 3D: the dome of the diaphragm is a hole in a slice, and no part of the lung
        lungs[place] |= ndimage.binary_fill_holes(part)
    return lungs
