"""Building packs: images in one memory-mapped array, masks in a second, geometry in a table.

Workers decode, resize and write each row straight into its place in the file, so that both cores work, nothing large
travels between processes, and memory does not grow with the number of images. A pack appears whole or not at all.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestflow.data import keeping
from chestflow.data.packing import Item, Target, pack_one
from chestflow.errors import DataError
from chestflow.files import read_parquet, write_json, write_parquet
from chestflow.parallel import ordered_map
from chestflow.segmentation import masks as mask_files

#: Highest share of images that may come out blank because their lungs are unknown.
MOST_BLANK = 0.05


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
        DataError: no image of the modality, an image that cannot be read (named by its image_id), too little disk, or
            too many images without the lungs that the recipe's ``keep`` needs; the few others are blank, and their
            ``kept`` in the index is 0.
    """
    rows = manifest[manifest["modality"] == recipe["modality"]].sort_values("image_id", ignore_index=True)
    if rows.empty:
        raise DataError(
            f"no {recipe['modality']} in the manifest: choose other sets, or drop the recipe that asks for it"
        )
    index = _known(
        pd.DataFrame({"row": range(len(rows)), "image_id": rows["image_id"]}), masks.parent / "ratio.parquet"
    )
    _require_lungs(index, recipe)
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
        write_parquet(partial_folder / "index.parquet", pd.concat([index, pd.DataFrame(geometry)], axis=1))
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


def _require_lungs(index: pd.DataFrame, recipe: dict[str, Any]) -> None:
    """Refuse a recipe that would blank more than a few pictures: being blank could come to stand for a class."""
    keep, without = recipe.get("keep", "all"), int((~index["has_lung"]).sum())
    if keep in keeping.NEED_LUNGS and without > MOST_BLANK * len(index):
        raise DataError(
            f"keep: {keep} needs lungs, and {without} of {len(index)} images have no lung mask: name sets that give"
            " lung masks in segment.cxr_lungs.sets, or use keep: border"
        )


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
