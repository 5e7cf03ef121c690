"""Regions of paper 003: heat maps, components, boxes, crops, halves; every invariant and edge case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from chestflow.nn.knowledge_regions import (
    attended,
    boxes,
    class_map,
    crop_resize,
    edges,
    heat_map,
    heat_sum,
    largest_component,
    left_of,
    side_boxes,
    widen,
)
from chestflow.training.region_augmentation import Jitter, Strength, mirror, random_slice
from tests.model.comparators import batch

SIZE = (24, 32)
MAPS = hnp.arrays(np.float32, (2, 1, 3, 4), elements=st.floats(0, 100, width=32))
MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


def heat(values: np.ndarray, norm: str = "min_max") -> torch.Tensor:
    return heat_map(torch.from_numpy(values), SIZE, norm)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(MAPS)
def test_a_heat_map_lies_in_0_to_1_and_reaches_both_unless_constant(values: np.ndarray) -> None:
    found = heat(values)
    assert found.shape == (2, 1, *SIZE)
    for one, s in zip(found, values, strict=True):
        constant = s.max() - s.min() <= 1e-6 * abs(s).max()
        assert one.min() == 0
        assert one.max() == (0 if constant else 1)
    literal = heat(values, "paper")
    assert literal.min() >= 0
    assert literal.max() <= 1


@settings(max_examples=40, deadline=None)
@given(MAPS, st.floats(0.125, 8), st.floats(0, 50))
def test_scaling_and_shifting_the_sum_changes_nothing(values: np.ndarray, gain: float, shift: float) -> None:
    assume(np.ptp(values, axis=(1, 2, 3)).min() >= 1)  # float32 keeps too little of a small range beside a large shift
    moved = (values * gain + shift).astype(np.float32)
    torch.testing.assert_close(heat(moved), heat(values), atol=2e-3, rtol=0)


def test_the_papers_quotient_depends_on_a_shift_and_may_never_reach_tau() -> None:
    values = np.linspace(0.5, 1.0, 12, dtype=np.float32).reshape(1, 1, 3, 4)
    assert float(heat(values, "paper").max()) == pytest.approx(0.5, abs=0.06)
    assert float(heat(values - 0.4, "paper").max()) > 0.7
    region = attended(heat(values, "paper"), 0.75)
    assert region.all()  # nothing above tau: the whole slice


def test_a_constant_sum_and_one_without_positive_maximum_give_the_whole_slice() -> None:
    for value in (0.0, 3.7, 1234.5678):
        found = heat(np.full((1, 1, 3, 4), value, np.float32))
        assert not found.any()
        assert attended(found, 0.0).all()
    negative = -torch.arange(1.0, 13).view(1, 1, 3, 4)
    assert not heat_map(negative, SIZE, "paper").any()
    assert heat_map(negative, SIZE, "min_max").max() == 1


def test_sources_of_the_sum() -> None:
    features = torch.tensor([[[[1.0, -2.0]], [[-3.0, 4.0]]]], requires_grad=True)
    assert heat_sum(features, "relu_sum").tolist() == [[[[1.0, 4.0]]]]
    assert heat_sum(features, "sum").tolist() == [[[[-2.0, 2.0]]]]
    assert heat_sum(features, "abs_max").tolist() == [[[[3.0, 4.0]]]]
    assert not heat_sum(features).requires_grad
    for name in ("cam", "max"):  # cam needs a classifier's weights besides the map
        with pytest.raises(ValueError, match="heat_source"):
            heat_sum(features, name)  # type: ignore[arg-type]


def test_a_class_map_weighs_the_channels_by_the_classifier_and_keeps_what_speaks_for_the_class() -> None:
    features = torch.tensor([[[[1.0, -2.0, 3.0]], [[-3.0, 4.0, 2.0]]]], requires_grad=True)
    weights = torch.tensor([2.0, -1.0], requires_grad=True)
    found = class_map(features, weights)
    assert found.tolist() == [[[[5.0, 0.0, 4.0]]]]
    assert not found.requires_grad
    assert not class_map(features.detach().abs(), -weights.abs()).any()  # nothing speaks for it: the whole slice
    assert class_map(features.half(), weights).dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(MAPS, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_tau_takes_a_subset(values: np.ndarray, a: float, b: float) -> None:
    found = heat(values)
    low, high = sorted((a, b))
    assert ((found > low) | ~(found > high)).all()


def test_tau_at_its_ends() -> None:
    values = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    found = heat(values)
    everything = attended(found, 0.0)[0]
    assert torch.equal(everything, found[0, 0] > 0)  # one slope: one component, all but the minimum
    assert attended(found, 1.0).all()
    assert attended(found, 0.999)[0].sum() < everything.sum()


@given(MASKS, st.sampled_from([4, 8]))
def test_a_component_is_connected_inside_and_the_largest(mask: np.ndarray, connectivity: int) -> None:
    part = largest_component(mask, connectivity)
    assert not (part & ~mask).any()
    structure = np.ones((3, 3)) if connectivity == 8 else None
    assert ndimage.label(part, structure)[1] == (1 if mask.any() else 0)
    labels, count = ndimage.label(mask, structure)
    sizes = [int((labels == i).sum()) for i in range(1, count + 1)]
    assert int(part.sum()) == max(sizes, default=0)


def test_corners_join_with_8_and_the_first_of_equal_ones_wins() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=bool)
    assert np.argwhere(largest_component(mask, 8)).tolist() == [[0, 0], [1, 1]]
    assert np.argwhere(largest_component(mask, 4)).tolist() == [[0, 3], [1, 3]]
    with pytest.raises(ValueError, match="4 or 8"):
        largest_component(mask, 6)


@given(MASKS, st.floats(0, 0.4), st.integers(1, 12))
def test_a_box_holds_its_region_stays_inside_and_is_never_empty(mask: np.ndarray, margin: float, side: int) -> None:
    size = (mask.shape[0], mask.shape[1])
    tight = boxes(torch.from_numpy(mask)[None])
    wide = widen(tight, margin, side, size)
    for box in (tight, wide):
        top, left, bottom, right = box[0].tolist()
        assert 0 <= top <= bottom < size[0]
        assert 0 <= left <= right < size[1]
        assert mask[top : bottom + 1, left : right + 1].sum() == mask.sum()
    height, width = (wide[0, 2:] - wide[0, :2] + 1).tolist()
    assert height >= min(side, size[0])
    assert width >= min(side, size[1])
    if not mask.any():
        assert tight.tolist() == [[0, 0, size[0] - 1, size[1] - 1]]


def test_a_box_of_one_pixel_gets_the_smallest_side_around_it() -> None:
    mask = torch.zeros(3, 64, 64, dtype=torch.bool)
    mask[0, 30, 40] = mask[1, 0, 63] = mask[2, 63, 2] = True
    assert widen(boxes(mask), 0.0, 16, (64, 64)).tolist() == [[23, 33, 38, 48], [0, 48, 15, 63], [48, 0, 63, 15]]
    assert boxes(mask)[0].tolist() == [30, 40, 30, 40]


def test_the_whole_slice_is_cut_unchanged_and_a_part_is_resized_as_interpolation_does() -> None:
    image = torch.rand(2, 1, 24, 32) * 255
    whole = torch.tensor([[0, 0, 23, 31]] * 2)
    assert torch.equal(crop_resize(image, edges(whole)), image)
    smooth = F.interpolate(torch.rand(1, 1, 3, 3), (24, 32), mode="bicubic") * 255
    box = torch.tensor([[6, 8, 17, 23]])
    reference = F.interpolate(smooth[:, :, 6:18, 8:24], (24, 32), mode="bilinear", align_corners=False)
    found = crop_resize(smooth, edges(box))
    # its own border pixels see their neighbours outside, which a crop does not have
    torch.testing.assert_close(found[..., 2:-2, 2:-2], reference[..., 2:-2, 2:-2], atol=1e-3, rtol=1e-4)
    picked = crop_resize(image, edges(whole)[:1], torch.tensor([1]))
    assert torch.equal(picked[0], image[1])


@given(hnp.arrays(bool, (12, 17)))
def test_halves_part_at_the_midline_and_exchange_under_a_mirror(mask: np.ndarray) -> None:
    infection = torch.from_numpy(mask).float()[None, None]
    _, present = side_boxes(infection, 0.0, 1)
    assert present[0].tolist() == [bool(mask[:, :8].any()), bool(mask[:, 8:].any())]
    even = infection[..., :16]
    (one, here), (other, there) = side_boxes(even, 0.05, 3), side_boxes(even.flip(-1), 0.05, 3)
    assert here.flip(1).equal(there)
    for side in range(2):
        if here[0, side]:
            top, left, bottom, right = other[0, 1 - side].tolist()
            assert one[0, side].tolist()[::2] == [top, bottom]
            # an even rest of pixels is dealt to either end, so a mirror may move a box of the smallest side by one
            assert abs(one[0, side, 1] - (15 - right)) <= 1
            assert abs(one[0, side, 3] - (15 - left)) <= 1


def lungs(*columns: tuple[int, int], width: int = 60) -> torch.Tensor:
    """Lung masks (1, 1, 40, width) of rectangles from row 10 to 30."""
    mask = torch.zeros(1, 1, 40, width)
    for first, last in columns:
        mask[..., 10:30, first:last] = 1
    return mask


def test_lungs_part_the_sides_where_the_picture_is_off_centre() -> None:
    mask = lungs((4, 14), (20, 30))  # both left of the midline, at column 30
    left = left_of(mask)
    assert left.dtype == torch.bool
    assert left[0, 20].tolist() == [True] * 17 + [False] * 43  # of equally near pixels the right side takes its own
    infection = torch.zeros_like(mask)
    infection[..., 15:20, 10:13] = infection[..., 15:20, 22:25] = 1
    assert side_boxes(infection, 0.0, 1)[1].tolist() == [[True, False]]
    found, present = side_boxes(infection, 0.0, 1, left)
    assert present.tolist() == [[True, True]]
    assert found.tolist() == [[[15, 10, 19, 12], [15, 22, 19, 24]]]
    turned, _ = side_boxes(infection.flip(-1), 0.0, 1, left_of(mask.flip(-1)))
    assert turned.tolist() == [[[15, 35, 19, 37], [15, 47, 19, 49]]]


@pytest.mark.parametrize(
    "mask", [lungs(), lungs((4, 30)), lungs((4, 24), (30, 31)), torch.ones(1, 1, 40, 60)],
    ids=["no lung", "one lung", "a speck beside one", "all lung"],
)  # fmt: skip
def test_without_two_lungs_the_midline_parts_the_sides(mask: torch.Tensor) -> None:
    assert torch.equal(left_of(mask), (torch.arange(60) < 30).expand(1, 40, 60))


def test_each_slice_of_a_batch_has_sides_of_its_own() -> None:
    several = torch.cat([lungs((4, 14), (20, 30)), lungs(), lungs((30, 40), (44, 56))])
    assert torch.equal(left_of(several), torch.cat([left_of(one[None]) for one in several]))


def test_margins_are_shares_of_the_slice_and_may_cross_the_midline() -> None:
    infection = torch.zeros(1, 1, 100, 100)
    infection[0, 0, 40:60, 30:50] = 1
    found, present = side_boxes(infection, 0.05, 16)
    assert found[0, 0].tolist() == [35, 25, 64, 54]
    assert present.tolist() == [[True, False]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_random_parts_lie_inside_their_boxes_and_keep_the_asked_area(seed: int) -> None:
    border = torch.tensor([[0.0, 0.0, 24.0, 32.0], [5.0, 6.0, 21.0, 30.0]])
    parts = Jitter(Strength(), torch.Generator().manual_seed(seed)).borders(border)
    assert (parts[:, :2] >= border[:, :2]).all()
    assert (parts[:, 2:] <= border[:, 2:] + 1e-4).all()
    share = (parts[:, 2:] - parts[:, :2]).prod(1) / (border[:, 2:] - border[:, :2]).prod(1)
    assert (share > 0.4999).all()
    assert (share <= 1 + 1e-5).all()


def test_grey_values_stay_in_range_and_a_seed_gives_the_same_pictures() -> None:
    crops = torch.rand(4, 1, 8, 8) * 255
    first, again, other = (Jitter(Strength(), torch.Generator().manual_seed(s)).crops(crops) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 255
    still = Jitter(Strength(flip=0.0, jitter=0.0), torch.Generator()).crops(crops)
    torch.testing.assert_close(still, crops, atol=1e-3, rtol=0)
    assert torch.equal(mirror(crops, torch.tensor([True, False, True, False]))[0], crops[0].flip(-1))


def test_masks_move_with_the_slice_and_stay_binary() -> None:
    given_ = batch(6, 32)
    square = torch.zeros(6, 1, 32, 32)
    square[:, :, 8:24, 6:14] = 1
    given_.image, given_.infection, given_.lung = square * 200, square.clone(), torch.ones_like(square)
    moved = random_slice(Strength(jitter=0.0))(given_, torch.Generator().manual_seed(0))
    assert moved.infection is not None
    assert moved.lung is not None
    assert set(moved.infection.unique().tolist()) <= {0.0, 1.0}
    assert moved.lung.all()
    assert ((moved.image > 100) == (moved.infection > 0.5)).float().mean() > 0.99
    assert torch.equal(given_.image, square * 200)


@pytest.mark.parametrize(
    "values", [{"scale": (0.0, 1.0)}, {"scale": (0.9, 0.5)}, {"ratio": (0.0, 1.0)}, {"flip": 1.5}, {"jitter": 1.0}]
)
def test_impossible_strengths_are_refused(values: dict) -> None:
    with pytest.raises(ValueError, match=r"scale is|flip is"):
        Strength(**values)
