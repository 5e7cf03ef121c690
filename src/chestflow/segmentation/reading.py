"""What workers of the stage segment read; without torch, so that they start fast and stay small."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.data.recipes import resize_plane
from chestflow.data.sources.base import Box
from chestflow.errors import naming_image
from chestflow.segmentation.masks import BOXES, from_boxes

if TYPE_CHECKING:
    from chestflow.config_segmentation import Segment

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Item:
    """One manifest row, as far as a worker needs it."""

    image_id: str
    modality: str
    path: str
    lung_mask: tuple[str, ...]
    infection_mask: tuple[str, ...]
    boxes: tuple[Box, ...] = ()


def paths(value: Any) -> tuple[str, ...]:
    """A manifest cell of paths, which is a list, an array after a round trip through parquet, or null."""
    return tuple(value) if isinstance(value, list | tuple | np.ndarray) else ()


def with_paths(column: pd.Series) -> NDArray[np.bool_]:
    """Which cells of a column of paths hold any; right for an empty column too."""
    return np.fromiter((bool(paths(value)) for value in column), dtype=bool, count=len(column))


def boxes_of(value: Any) -> tuple[Box, ...]:
    """A manifest cell of boxes: lists, arrays after a round trip through parquet, or null."""
    cells = value if isinstance(value, list | tuple | np.ndarray) else ()
    return tuple((float(x), float(y), float(width), float(height)) for x, y, width, height in cells)


def items_of(manifest: pd.DataFrame) -> list[Item]:
    """Manifest rows in order of image_id."""
    columns = ["image_id", "modality", "path", "lung_mask", "infection_mask", "boxes"]
    rows = manifest[columns].sort_values("image_id").itertuples(index=False)
    return [
        Item(i, modality, path, paths(lung), paths(infection), boxes_of(boxes))
        for i, modality, path, lung, infection, boxes in rows
    ]


def from_source(item: Item, shape: tuple[int, ...]) -> Mask | None:
    """Infection mask as the source gives it, composed where it has one file per structure; None where it gives none."""
    from chestflow.imaging.read import read_mask

    return read_mask(item.infection_mask, shape) if item.infection_mask else None


class Lesions(NamedTuple):
    """Where the infection of an image lies, each mask (H, W) or (D, H, W).

    Attributes:
        mask: what counts; None where it is unknown.
        origin: who says so: ``network``, ``source``, ``boxes`` or nobody (``none``).
        outlined: the source's outlines, whoever made ``mask``; None where it gives none.
    """

    mask: Mask | None
    origin: str
    outlined: Mask | None


def infection_of(item: Item, shape: tuple[int, ...], network: Mask | None = None) -> Lesions:
    """Where the infection lies, and who says so.

    A box holds the infection and more. It shows whether attention points the right way, and stands for no outline: the
    caller takes no ratio from it and does not count it as an infection mask.

    Args:
        item: the image.
        shape: its own.
        network: what a trained segmenter found; given, it counts.
    """
    outlined = from_source(item, shape)
    if network is not None:
        return Lesions(network, "network", outlined)
    if outlined is not None:
        return Lesions(outlined, "source", outlined)
    if item.boxes and len(shape) == 2:
        return Lesions(from_boxes(item.boxes, (shape[0], shape[1])), BOXES, None)
    return Lesions(None, "none", None)


def lungs_of_volume(
    item: Item, hu: NDArray[np.int16], spacing: tuple[float, float, float], settings: Segment
) -> tuple[Mask, str]:
    """The lungs of a volume, and where they are from: the source's where asked for, else by threshold."""
    from chestflow.imaging.read import read_mask
    from chestflow.segmentation.lungs import segment_ct

    if item.lung_mask and settings.ct_prefer_source:
        return read_mask(item.lung_mask, hu.shape), "source"
    rules = (settings.ct_lung_threshold_hu, settings.ct_closing_mm, settings.ct_convex_wall)
    return segment_ct(hu, spacing, *rules), "threshold"


def read_small(item: Item, size: int) -> tuple[NDArray[np.uint8], tuple[int, int], Lesions]:
    """An X-ray on the network's square, its own shape, and :func:`infection_of` it; runs in a worker."""
    from chestflow.imaging.read import read_radiograph

    with naming_image(item.image_id, "segmented"):
        pixels = read_radiograph(Path(item.path)).uint8()
        height, width = pixels.shape
        return resize_plane(pixels, (size, size)), (height, width), infection_of(item, pixels.shape)


def read_pair(case: tuple[str, str, tuple[str, ...]], size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """An X-ray and its lungs on the network's square; runs in a worker."""
    from chestflow.imaging.read import read_mask, read_radiograph

    image_id, path, lung_mask = case
    with naming_image(image_id, "read for the lung segmenter"):
        pixels = read_radiograph(Path(path)).uint8()
        return (
            resize_plane(pixels, (size, size)),
            resize_plane(read_mask(lung_mask, pixels.shape).astype(np.float32), (size, size)) > 0.5,
        )
