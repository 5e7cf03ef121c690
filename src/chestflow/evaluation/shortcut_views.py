"""What a simple probe sees of a picture: the whole, or a part of it, as a vector of numbers.

A thumbnail (means over what is kept of each cell), the shares of the grey levels, and the shares of small and large
steps between neighbours, which tell noise, blur and compression. Histograms are shares of what is kept, and steps are
taken between kept neighbours alone, so that neither the area of a hole nor its edge is measured; the thumbnail's empty
cells do show where the hole is, and the two views of the lungs' outline say how much that alone tells.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from chestflow.data import keeping, recipes
from chestflow.errors import naming_image
from chestflow.segmentation import masks as mask_files

if TYPE_CHECKING:
    from chestflow.data.packing import Item

#: View -> the part of the picture that it keeps (see :mod:`chestflow.data.keeping`).
PICTURES = {
    "image": "all", "border": "border", "lungs": "lungs", "lungs_removed": "outside_lungs", "box_removed": "outside_box"
}  # fmt: skip
#: Controls without a grey value: the lungs' outline, and the box around them.
SHAPES = ("lung_shape", "lung_box")
VIEWS = (*PICTURES, *SHAPES)
#: Cells of the thumbnail on each side.
GRID = 24
GREY_BINS = 16
STEP_EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 256)
#: Neighbours at which steps are taken: (rows, columns).
STEPS = ((0, 1), (1, 0), (0, 2), (2, 0))
#: A cell of which less is kept counts as empty.
LEAST_CELL = 0.05
EMPTY = -1.0


def _cells(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(recipes.resize_plane(np.ascontiguousarray(values), (GRID, GRID)), dtype=np.float32)


def describe(pixels: NDArray[np.uint8], kept: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The numbers of one view, (GRID * GRID + 16 + 2 + 4 * 8,).

    Args:
        pixels: (H, W), 0 to 255.
        kept: bool (H, W), somewhere True.
    """
    grey = pixels.astype(np.float32)
    share = _cells(kept.astype(np.float32))
    mean = _cells(np.where(kept, grey, 0)) / np.maximum(share, LEAST_CELL)
    inside = grey[kept]
    parts = [
        np.where(share >= LEAST_CELL, mean, EMPTY).ravel(),
        np.histogram(inside, GREY_BINS, (0, 256))[0] / inside.size,
        np.array([inside.mean(), inside.std()]),
    ]
    height, width = pixels.shape
    for down, right in STEPS:
        here, there = (slice(down, None), slice(right, None)), (slice(height - down), slice(width - right))
        steps = np.abs(grey[here] - grey[there])[kept[here] & kept[there]]
        parts.append(np.histogram(steps, STEP_EDGES)[0] / max(1, steps.size))
    return np.concatenate(parts).astype(np.float32)


def outline(region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The numbers of a region's shape and place alone, (GRID * GRID + 1,)."""
    return np.append(_cells(region.astype(np.float32)).ravel(), np.float32(region.mean()))


def see(
    pixels: NDArray[np.uint8], lung: NDArray[np.bool_] | None, clahe_settings: dict[str, Any] | None
) -> dict[str, NDArray[np.float32] | None]:
    """Every view of one picture; None for those that need lungs where none are known.

    Args:
        pixels: (H, W) at the recipe's size, not equalised.
        lung: bool (H, W), or None.
        clahe_settings: the recipe's; each view is equalised after the rest was blackened, as a recipe's ``keep`` does.
    """
    found: dict[str, NDArray[np.float32] | None] = {}
    for view, keep in PICTURES.items():
        kept = keeping.region(keep, pixels.shape, lung)
        found[view] = describe(recipes.equalised(pixels, clahe_settings, kept), kept) if kept.any() else None
    known = lung is not None and bool(lung.any())
    found["lung_shape"] = outline(keeping.region("lungs", pixels.shape, lung)) if known else None
    found["lung_box"] = outline(~keeping.region("outside_box", pixels.shape, lung)) if known else None
    return found


def read_views(item: Item, recipe: dict[str, Any]) -> dict[str, NDArray[np.float32] | None]:
    """Read one image and its mask, and see it; runs in a worker."""
    from chestflow.imaging.read import read_radiograph

    cv2.setNumThreads(1)
    with naming_image(item.image_id, "read"):
        image = read_radiograph(Path(item.path))
        content = recipes.image_content(image.pixels.shape, tuple(recipe["size"]), recipe["keep_aspect"])
        lung = None
        if item.mask is not None:
            lung = recipes.nearest(mask_files.read(item.mask) & mask_files.LUNG, content) > 0
        return see(recipes.grey(image, content), lung, recipe["clahe"])
