"""Recipes: sizes, factors, padding, masks, and the way back."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chestflow.config import Recipe
from chestflow.data import recipes
from chestflow.errors import DataError


@dataclass
class Picture:
    """Stands in for a Radiograph."""

    pixels: np.ndarray
    spacing_mm: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self.pixels = self.pixels.astype(np.float32)

    def uint8(self) -> np.ndarray:
        return np.rint(self.pixels).astype(np.uint8)


@dataclass
class Scan:
    """Stands in for a Volume."""

    hu: np.ndarray
    spacing_mm: tuple[float, float, float] | None


def image_recipe(**more: object) -> dict:
    return Recipe.model_validate({"modality": "cxr", "size": [32, 48], **more}).model_dump()


def volume_recipe(size: list[int], **more: object) -> dict:
    values = {"modality": "ct_volume", "size": size, "spacing_mm": [1.25, 0.7168, 0.7168], **more}
    return Recipe.model_validate(values).model_dump()


def blob(shape: tuple[int, ...]) -> np.ndarray:
    """A smooth bump in the middle, 0 to 1."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return np.exp(-3 * sum(axis**2 for axis in axes))


def test_image_is_resized_equalised_and_stays_uint8() -> None:
    picture = Picture(200 * blob((90, 120)), (0.2, 0.1))
    plain, masks, geometry = recipes.apply(picture, None, image_recipe())
    equalised, _, _ = recipes.apply(picture, None, image_recipe(clahe={"clip": 4.0, "tiles": 4}))
    assert plain.shape == equalised.shape == (32, 48)
    assert plain.dtype == equalised.dtype == np.uint8
    assert masks is None
    assert not np.array_equal(plain, equalised)
    assert geometry["spacing_y"] == pytest.approx(0.2 * 90 / 32)
    assert geometry["spacing_x"] == pytest.approx(0.1 * 120 / 48)


def test_keeping_the_aspect_pads_with_black_in_the_middle() -> None:
    picture = Picture(np.full((100, 50), 77))
    packed, _, geometry = recipes.apply(picture, None, image_recipe(size=[40, 40], keep_aspect=True))
    assert (geometry["content_height"], geometry["content_width"]) == (40, 20)
    assert (geometry["top"], geometry["left"]) == (0, 10)
    assert (packed[:, 10:30] == 77).all()
    assert packed[:, :10].sum() == packed[:, 30:].sum() == 0


def test_shrinking_averages_and_does_not_alias() -> None:
    stripes = Picture(np.tile([0, 200], (64, 32)))  # one pixel wide: sampling would give 0 or 200
    packed, _, _ = recipes.apply(stripes, None, image_recipe(size=[16, 16]))
    assert (np.abs(packed.astype(int) - 100) <= 1).all()
    columns = np.tile(np.array([-1000, 0], dtype=np.int16), (8, 8, 8))
    shrunk = recipes.resample(columns, (4, 4, 4))
    assert np.allclose(shrunk, -500)


def test_common_factor_of_the_paper() -> None:
    size, spacing, target = (138, 256, 256), (1.25, 0.7168, 0.7168), [1.25, 0.7168, 0.7168]
    assert recipes.volume_content((200, 400, 400), spacing, size, target, 0.5) == (100, 200, 200)
    # a scan too tall for one half: all three axes shrink by 138/552
    assert recipes.volume_content((552, 400, 400), spacing, size, target, 0.5) == (138, 100, 100)
    # too wide: 256/640
    assert recipes.volume_content((100, 400, 640), spacing, size, target, 0.5) == (40, 160, 256)
    # half the spacing is half the grid
    assert recipes.volume_content((400, 400, 400), (0.625, 0.7168, 0.3584), size, target, 0.5) == (100, 200, 100)


def test_volume_is_centred_in_air_that_every_window_maps_to_zero() -> None:
    scan = Scan(np.full((20, 40, 40), 50, dtype=np.int16), (1.25, 0.7168, 0.7168))
    masks = np.full((20, 40, 40), 3, dtype=np.uint8)
    packed, packed_masks, geometry = recipes.apply(scan, masks, volume_recipe([16, 32, 32]))
    assert packed.dtype == np.int16
    assert (geometry["front"], geometry["top"], geometry["left"]) == (3, 6, 6)
    inside = np.zeros((16, 32, 32), dtype=bool)
    inside[3:13, 6:26, 6:26] = True
    assert (packed[inside] == 50).all()
    assert (packed[~inside] == recipes.PAD_HU).all()
    assert recipes.PAD_HU <= -1350
    assert packed_masks is not None
    assert np.array_equal(packed_masks, np.where(inside, 3, 0))


def test_spacing_of_the_result_is_the_targets_over_the_factor() -> None:
    scan = Scan(np.zeros((120, 200, 200), dtype=np.int16), (2.5, 0.7, 0.7))
    _, _, geometry = recipes.apply(scan, None, volume_recipe([138, 256, 256]))
    assert geometry["spacing_z"] == pytest.approx(2.5, rel=0.01)
    assert geometry["spacing_y"] == geometry["spacing_x"] == pytest.approx(1.4336, rel=0.01)


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 40), st.integers(2, 60), st.integers(2, 60)),
    st.tuples(st.floats(0.5, 8), st.floats(0.3, 4), st.floats(0.3, 4)),
    st.integers(0, 99),
)
def test_any_volume_fits_and_masks_keep_their_bits(shape: tuple, spacing: tuple, seed: int) -> None:
    random = np.random.default_rng(seed)
    masks = random.choice(np.array([0, 1, 3, 4, 7], dtype=np.uint8), shape)
    scan = Scan(random.integers(-1000, 400, shape).astype(np.int16), spacing)
    packed, packed_masks, geometry = recipes.apply(scan, masks, volume_recipe([12, 24, 24]))
    assert packed_masks is not None
    assert packed.shape == packed_masks.shape == (12, 24, 24)
    assert set(np.unique(packed_masks)) <= {0, 1, 3, 4, 7}
    inside = packed[packed != recipes.PAD_HU]
    assert scan.hu.min() <= inside.min()
    assert inside.max() <= scan.hu.max()
    assert recipes.restore(packed_masks, geometry).shape == shape


@pytest.mark.parametrize("keep_aspect", [False, True])
@pytest.mark.parametrize("shape", [(100, 150), (20, 30), (37, 20)])
def test_the_way_back_finds_the_same_place_in_images(shape: tuple[int, int], keep_aspect: bool) -> None:
    mask = (blob(shape) > 0.5).astype(np.uint8)
    recipe = image_recipe(size=[64, 64], keep_aspect=keep_aspect)
    _, packed, geometry = recipes.apply(Picture(200 * blob(shape)), mask, recipe)
    assert packed is not None
    back = recipes.restore(packed, geometry)
    assert back.shape == shape
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.95


def test_the_way_back_finds_the_same_values_in_volumes() -> None:
    shape = (24, 64, 48)
    scan = Scan((1000 * blob(shape)).astype(np.int16), (2.5, 1.0, 1.0))
    packed, _, geometry = recipes.apply(scan, None, volume_recipe([48, 64, 64], max_downscale=1.0))
    back = recipes.restore(packed.astype(np.float32), geometry)
    assert back.shape == shape
    assert np.abs(back - scan.hu).max() < 60
    assert np.abs(back - scan.hu).mean() < 6


def test_growing_is_linear_and_keeps_the_ends() -> None:
    assert np.allclose(recipes.axis_weights(2, 4) @ np.array([0.0, 1.0]), [0, 0.25, 0.75, 1])


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60))
def test_weights_sum_to_one(before: int, after: int) -> None:
    weights = recipes.axis_weights(before, after)
    assert weights.shape == (after, before)
    assert (weights >= 0).all()
    assert np.allclose(weights.sum(1), 1, atol=1e-5)


def test_metal_and_scanner_fill_are_held_in_range() -> None:
    hu = np.full((8, 16, 16), -32768, dtype=np.int16)
    hu[4] = 32767
    packed, _, _ = recipes.apply(Scan(hu, (1.25, 0.7168, 0.7168)), None, volume_recipe([8, 16, 16]))
    assert packed.min() >= recipes.PAD_HU
    assert packed.max() <= recipes.TOP_HU


def test_refuses_what_does_not_fit() -> None:
    scan = Scan(np.zeros((8, 16, 16), dtype=np.int16), (1.25, 0.7, 0.7))
    recipe = volume_recipe([8, 16, 16])
    with pytest.raises(DataError, match="one size"):
        recipes.apply(scan, np.zeros((8, 16, 15), dtype=np.uint8), recipe)
    with pytest.raises(DataError, match="another kind"):
        recipes.apply(scan, None, image_recipe())
    for bad in (None, (0.0, 1.0, 1.0), (float("nan"), 1.0, 1.0)):
        with pytest.raises(DataError, match="spacing"):
            recipes.apply(Scan(scan.hu, bad), None, recipe)
