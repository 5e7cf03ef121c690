"""What workers of the stage segment read; without torch, so that they start fast and stay small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.data.recipes import resize_plane
from chestflow.errors import naming_image

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Item:
    """One manifest row, as far as a worker needs it."""

    image_id: str
    modality: str
    path: str
    lung_mask: tuple[str, ...]
    infection_mask: tuple[str, ...]


def paths(value: Any) -> tuple[str, ...]:
    """A manifest cell of paths, which is a list, an array after a round trip through parquet, or null."""
    return tuple(value) if isinstance(value, list | tuple | np.ndarray) else ()


def items_of(manifest: pd.DataFrame) -> list[Item]:
    """Manifest rows in order of image_id."""
    columns = ["image_id", "modality", "path", "lung_mask", "infection_mask"]
    rows = manifest[columns].sort_values("image_id").itertuples(index=False)
    return [Item(i, modality, path, paths(lung), paths(infection)) for i, modality, path, lung, infection in rows]


def from_source(item: Item, shape: tuple[int, ...]) -> Mask | None:
    """Infection mask as the source gives it, composed where it has one file per structure; None where it gives none."""
    from chestflow.imaging.read import read_mask

    return read_mask(item.infection_mask, shape) if item.infection_mask else None


#: name -> function of an item and its shape that gives the infection mask, or None where it is unknown.
PROVIDERS: dict[str, Callable[[Item, tuple[int, ...]], Mask | None]] = {"source": from_source}


def read_small(item: Item, size: int, provider: str) -> tuple[NDArray[np.uint8], tuple[int, int], Mask | None]:
    """An X-ray on the network's square, its own shape, and its infection mask; runs in a worker."""
    from chestflow.imaging.read import read_radiograph

    with naming_image(item.image_id, "segmented"):
        pixels = read_radiograph(Path(item.path)).uint8()
        height, width = pixels.shape
        return resize_plane(pixels, (size, size)), (height, width), PROVIDERS[provider](item, pixels.shape)


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
