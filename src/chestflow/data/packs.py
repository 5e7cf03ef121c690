"""Packs: all images of one recipe in one memory-mapped array, their masks in a second, their geometry in a table.

Workers decode, resize and write each row straight into its place in the file, so that both cores work, nothing large
travels between processes, and memory does not grow with the number of images. A pack appears whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.data.packing import Item, Target, pack_one
from chestflow.errors import DataError
from chestflow.files import read_json, read_parquet, write_json, write_parquet
from chestflow.parallel import ordered_map
from chestflow.segmentation import masks as mask_files


def build(
    manifest: pd.DataFrame,
    recipe: dict[str, Any],
    masks: Path,
    out: Path,
    workers: int | None = None,
) -> None:
    """Make the pack of all images that a recipe is for.

    Args:
        manifest: rows of every modality; those of the recipe's modality are packed, ordered by image_id.
        recipe: the plain values of a :class:`chestflow.config.Recipe`.
        masks: folder of mask files; ``ratio.parquet`` beside it says which masks are known.
        out: the pack's folder: data.npy, masks.npy, index.parquet, recipe.json.
        workers: processes; None takes one per core.

    Raises:
        DataError: no image of the modality, an image that cannot be read (named by its image_id), or too little disk.
    """
    rows = manifest[manifest["modality"] == recipe["modality"]].sort_values("image_id", ignore_index=True)
    if rows.empty:
        raise DataError(
            f"no {recipe['modality']} in the manifest: choose other sets, or drop the recipe that asks for it"
        )
    items = [
        Item(row, image_id, path, mask_files.find(masks, image_id))
        for row, (image_id, path) in enumerate(zip(rows["image_id"], rows["path"], strict=True))
    ]
    shape = (len(items), *recipe["size"])
    dtype = np.dtype(np.int16 if recipe["modality"] == "ct_volume" else np.uint8)
    partial_folder = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    try:
        _require_space(partial_folder, int(np.prod(shape, dtype=np.int64)) * (dtype.itemsize + 1))
        target = Target(
            partial_folder,
            _create(partial_folder / "data.npy", shape, dtype),
            _create(partial_folder / "masks.npy", shape, np.dtype(np.uint8)),
        )
        geometry = list(ordered_map(partial(pack_one, recipe=recipe, target=target), items, workers))
        index = pd.DataFrame({"row": range(len(items)), "image_id": rows["image_id"]})
        index = pd.concat([_known(index, masks.parent / "ratio.parquet"), pd.DataFrame(geometry)], axis=1)
        write_parquet(partial_folder / "index.parquet", index)
        write_json(partial_folder / "recipe.json", recipe)
        if out.exists():
            shutil.rmtree(out)
        partial_folder.rename(out)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def _known(index: pd.DataFrame, ratio: Path) -> pd.DataFrame:
    """Add has_lung and has_infection: an empty mask that is known is not the same as an unknown one."""
    flags = read_parquet(ratio)[["image_id", "has_lung", "has_infection"]]
    index = index.merge(flags, on="image_id", how="left", validate="one_to_one")
    if index["has_lung"].isna().any():
        lost = index.loc[index["has_lung"].isna(), "image_id"].iloc[0]
        raise DataError(f"image {lost} is not in {ratio.name}: run the stage `segment` again")
    return index.astype({"has_lung": bool, "has_infection": bool})


def _require_space(folder: Path, needed: int) -> None:
    """Say at once, and not after an hour, that a pack will not fit."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the pack {folder.name.split('.')[1]} needs {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB:"
            " free some space or make the recipe's size smaller"
        )


def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Make an array file of zeros (sparse: rows never written take no space); where its first row begins."""
    return int(np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).offset)


class Pack:
    """A pack open for reading.

    Attributes:
        data: memory map, (N, H, W) uint8 or (N, D, H, W) int16 HU.
        masks: memory map of the same shape, uint8 bits: 1 lung, 2 infection.
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
