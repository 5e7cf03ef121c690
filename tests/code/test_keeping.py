"""What a recipe keeps: nothing of the rest reaches the pack, by CLAHE or by resizing, in packs and in serving alike."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chestflow.config import Recipe
from chestflow.data import keeping, recipes
from chestflow.data.manifest import conform
from chestflow.data.pack_building import build
from chestflow.data.packs import Pack
from chestflow.errors import DataError
from chestflow.segmentation import masks as mask_files
from tests.code.test_recipes import Picture, Scan, image_recipe, volume_recipe

CLAHE = {"clip": 4.0, "tiles": 4}


def lungs(shape: tuple[int, int] = (80, 80)) -> np.ndarray:
    """Two upright ellipses."""
    y, x = np.mgrid[: shape[0], : shape[1]] / np.array(shape).reshape(2, 1, 1)
    return sum(((y - 0.5) / 0.3) ** 2 + ((x - middle) / 0.13) ** 2 < 1 for middle in (0.3, 0.7)) > 0


def noise(seed: int = 0, shape: tuple[int, int] = (80, 80)) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 236, shape)


def test_regions_share_the_picture_among_them() -> None:
    lung = lungs()
    kept = {keep: keeping.region(keep, lung.shape, lung) for keep in keeping.KEEP}
    assert kept["all"].all()
    assert np.array_equal(kept["lungs"], ~kept["outside_lungs"])
    assert not (kept["outside_box"] & ~kept["outside_lungs"]).any()
    hole = ~kept["outside_box"]
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    assert hole.sum() == len(rows) * len(columns)
    assert kept["border"].sum() == 80 * 80 - 64 * 64
    assert not kept["border"][8:72, 8:72].any()


def test_the_border_of_a_volume_is_that_of_its_slices() -> None:
    ring = keeping.region("border", (3, 20, 30), None)
    assert np.array_equal(ring[0], keeping.region("border", (20, 30), None))
    assert (ring == ring[0]).all()


@pytest.mark.parametrize("keep", keeping.NEED_LUNGS)
@pytest.mark.parametrize("lung", [None, np.zeros((80, 80), dtype=bool)])
def test_without_lungs_nothing_is_kept(keep: str, lung: np.ndarray | None) -> None:
    assert not keeping.region(keep, (80, 80), lung).any()
    bits = None if lung is None else lung.astype(np.uint8)
    packed, _, geometry = recipes.apply(Picture(noise()), bits, image_recipe(size=[40, 40], clahe=CLAHE, keep=keep))
    assert geometry["kept"] == 0
    assert not packed.any()


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match="outside_box"):
        keeping.region("heart", (8, 8), None)


@pytest.mark.parametrize("keep", keeping.KEEP[1:])
@pytest.mark.parametrize("clahe", [None, CLAHE])
def test_what_is_removed_changes_nothing_of_what_is_kept(keep: str, clahe: dict | None) -> None:
    """Two pictures that differ in the removed part alone give the same bytes, through CLAHE's histograms too."""
    lung = lungs()
    kept = keeping.region(keep, lung.shape, lung)
    first = noise()
    second = np.where(kept, first, 255 - first // 3)
    recipe = image_recipe(size=[80, 80], clahe=clahe, keep=keep)
    bits = lung.astype(np.uint8)
    one, masks, geometry = recipes.apply(Picture(first), bits, recipe)
    two, _, _ = recipes.apply(Picture(second), bits, recipe)
    assert np.array_equal(one, two)
    assert not one[~kept].any()
    assert one[kept].any()
    assert geometry["kept"] == pytest.approx(kept.mean())
    assert masks is not None
    assert np.array_equal(masks, bits)


def test_all_is_what_it_was_and_the_default() -> None:
    plain = image_recipe(clahe=CLAHE)
    assert plain["keep"] == "all"
    without = {key: value for key, value in plain.items() if key != "keep"}
    one, _, geometry = recipes.apply(Picture(noise()), lungs().astype(np.uint8), plain)
    two, _, _ = recipes.apply(Picture(noise()), lungs().astype(np.uint8), without)
    assert np.array_equal(one, two)
    assert geometry["kept"] == 1


def test_the_border_is_the_pictures_and_not_the_paddings() -> None:
    packed, _, _ = recipes.apply(Picture(np.full((40, 80), 99)), None, image_recipe(
        size=[80, 80], keep_aspect=True, keep="border"))  # fmt: skip
    assert (packed[20:24] == 99).all()
    assert not packed[24:56, 8:72].any()
    assert not packed[:20].any()


def test_volumes_lose_their_lungs_to_air_below_every_window() -> None:
    hu = np.full((8, 16, 16), 40, dtype=np.int16)
    bits = np.zeros(hu.shape, dtype=np.uint8)
    bits[2:6, 4:12, 4:12] = 1
    recipe = volume_recipe([8, 16, 16], max_downscale=1.0, keep="outside_lungs")
    packed, masks, geometry = recipes.apply(Scan(hu, (1.25, 0.7168, 0.7168)), bits, recipe)
    assert masks is not None
    assert (packed[masks == 1] == recipes.PAD_HU).all()
    assert (packed[masks == 0] == 40).all()
    assert geometry["kept"] == pytest.approx(1 - bits.mean())


def make(folder: Path, count: int, without: int) -> tuple[pd.DataFrame, Path]:
    """X-rays of which the first ``without`` have no lung mask."""
    masks, rows, flags = folder / "segment" / "masks", [], []
    for number in range(count):
        image_id, path = f"set-{number:04d}", folder / f"{number}.png"
        cv2.imwrite(str(path), noise(number).astype(np.uint8))
        if number >= without:
            mask_files.write(masks, image_id, lungs().astype(np.uint8))
        rows.append({"image_id": image_id, "modality": "cxr", "path": str(path), "source": "set"})
        flags.append({"image_id": image_id, "has_lung": number >= without, "has_infection": False})
    pd.DataFrame(flags).to_parquet(folder / "segment" / "ratio.parquet")
    return conform(pd.DataFrame(rows)), masks


@pytest.mark.parametrize("keep", keeping.KEEP)
def test_a_few_images_without_lungs_are_blank_and_counted(tmp_path: Path, keep: str) -> None:
    manifest, masks = make(tmp_path, 20, 1)
    recipe = Recipe.model_validate({"modality": "cxr", "size": [40, 40], "keep": keep}).model_dump()
    build(manifest, recipe, masks, tmp_path / "pack", workers=1)
    pack = Pack.open(tmp_path / "pack")
    blank = keep in keeping.NEED_LUNGS
    assert (pack.index["kept"] == 0).sum() == blank
    assert pack.data[0].any() == (not blank)
    assert all(pack.data[row].any() for row in range(1, 20))
    assert pack.recipe["keep"] == keep


@pytest.mark.parametrize("keep", keeping.NEED_LUNGS)
def test_many_images_without_lungs_are_refused_before_the_work(tmp_path: Path, keep: str) -> None:
    manifest, masks = make(tmp_path, 20, 2)
    recipe = Recipe.model_validate({"modality": "cxr", "size": [40, 40], "keep": keep}).model_dump()
    with pytest.raises(DataError, match=rf"keep: {keep} needs lungs, and 2 of 20 images.*cxr_lungs\.sets"):
        build(manifest, recipe, masks, tmp_path / "pack", workers=1)
    assert not (tmp_path / "pack").exists()
