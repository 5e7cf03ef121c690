"""What a worker does for one row of a pack: read, transform, write in place. Without pandas, so that it starts fast."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chestflow.data import recipes
from chestflow.errors import naming_image
from chestflow.segmentation import masks as mask_files


@dataclass(frozen=True)
class Item:
    """What a worker needs to know of one image."""

    row: int
    image_id: str
    path: str
    mask: Path | None


@dataclass(frozen=True)
class Target:
    """The two files that workers write into, and where their first row begins."""

    folder: Path
    data_start: int
    mask_start: int


def write_row(path: Path, start: int, row: int, values: NDArray) -> None:
    """Write one row in its place. Plain writes, since written pages of a memory map count as the process's memory."""
    content = memoryview(np.ascontiguousarray(values).tobytes())
    position = start + row * len(content)
    with open(path, "r+b", buffering=0) as stream:
        while content:
            written = os.pwrite(stream.fileno(), content, position)
            content, position = content[written:], position + written


def pack_one(item: Item, recipe: dict[str, Any], target: Target) -> recipes.Geometry:
    """Read, transform and write one image; runs in a worker."""
    from chestflow.imaging import read

    with naming_image(item.image_id, "packed"):
        reader = read.read_volume if recipe["modality"] == "ct_volume" else read.read_radiograph
        bits = mask_files.read(item.mask) if item.mask is not None else None
        data, packed_masks, geometry = recipes.apply(reader(Path(item.path)), bits, recipe)
    write_row(target.folder / "data.npy", target.data_start, item.row, data)
    if packed_masks is not None and packed_masks.any():
        write_row(target.folder / "masks.npy", target.mask_start, item.row, packed_masks)
    return geometry
