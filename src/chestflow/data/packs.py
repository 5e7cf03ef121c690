"""Reading packs: all images of one recipe in one memory-mapped array, their masks in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.errors import DataError
from chestflow.files import read_json, read_parquet


class Pack:
    """A pack open for reading.

    Attributes:
        data: memory map, (N, H, W) uint8 or (N, D, H, W) int16 HU.
        masks: memory map of the same shape, uint8 bits: 1 lung, 2 infection, 4 what the source outlines.
        index: one row per image in order: row, image_id, has_lung, has_infection, and the geometry.
        recipe: the recipe's plain values.
    """

    def __init__(self, data: NDArray, masks: NDArray, index: pd.DataFrame, recipe: dict[str, Any]) -> None:
        self.data, self.masks, self.index, self.recipe = data, masks, index, recipe
        self.has_masks = bool((index["has_lung"] | index["has_infection"]).any())

    @classmethod
    def open(cls, path: Path) -> Pack:
        """Open a pack's folder; the arrays are read only where they are touched.

        Raises:
            DataError: the pack is missing, or its parts do not fit together.
        """
        index, recipe = read_parquet(path / "index.parquet"), read_json(path / "recipe.json")
        try:
            data, masks = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("data", "masks"))
        except (OSError, ValueError, EOFError):
            raise DataError(f"{path} is damaged or incomplete: run `dvc repro` to make it again") from None
        if data.shape != masks.shape or len(data) != len(index):
            raise DataError(f"{path} has parts of different lengths: run `dvc repro` to make it again")
        return cls(data, masks, index, recipe)

    def __len__(self) -> int:
        return len(self.index)

    def rows_of(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of the named images, in the order asked for.

        Raises:
            DataError: an image is not in the pack.
        """
        found = pd.Index(self.index["image_id"]).get_indexer(pd.Index(image_ids))
        if (found < 0).any():
            lost = list(image_ids)[int(np.flatnonzero(found < 0)[0])]
            raise DataError(f"image {lost} is not in the pack: it belongs to another modality, or the pack is old")
        return found.astype(np.int64)

    def gather(self, rows: Sequence[int] | NDArray) -> tuple[NDArray, NDArray[np.uint8] | None]:
        """Copy rows into contiguous arrays, in the order asked for, read in the order they lie on disk.

        Args:
            rows: row numbers, repeats allowed.

        Returns:
            (B, ...) of the pack's type, and the masks (B, ...) uint8, or None where no image of the pack has any.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows must lie in 0 to {len(self) - 1}, got {rows.min()} to {rows.max()}")
        order = np.argsort(rows, kind="stable")
        return _gather(self.data, rows, order), _gather(self.masks, rows, order) if self.has_masks else None


def _gather(source: NDArray, rows: NDArray, order: NDArray) -> NDArray:
    """One copy per row: fancy indexing in sorted order would need a second one to undo the sorting."""
    result = np.empty((len(rows), *source.shape[1:]), dtype=source.dtype)
    for place in order:
        result[place] = source[rows[place]]
    return result
