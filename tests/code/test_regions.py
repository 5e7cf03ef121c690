"""Regions: thresholds, components, boxes, and what happens when there is nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from chestflow.imaging.regions import (
    bounding_box,
    crop,
    grow,
    largest_component,
    largest_components,
    slices,
    threshold,
)

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=3, max_side=7))


def test_threshold_is_relative_to_the_peak_and_empty_for_an_empty_map() -> None:
    values = np.array([[0.0, 1.0], [2.0, 4.0]])
    assert threshold(values, 0.5).tolist() == [[False, False], [True, True]]
    assert not threshold(np.zeros((3, 3)), 0.5).any()
    with pytest.raises(ValueError, match="share_of_peak"):
        threshold(values, 0.0)


def test_components_are_face_connected_and_ordered_by_size() -> None:
    mask = np.array([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)
    first, second = largest_components(mask, 2)
    assert (int(first.sum()), int(second.sum())) == (3, 2)  # the corner contact does not join them
    assert len(largest_components(mask, 3)) == 3
    assert len(largest_components(mask, 3, min_share=0.5)) == 2
    assert np.array_equal(largest_component(mask), first)


def test_nothing_in_gives_nothing_out_and_the_whole_picture_as_box() -> None:
    empty = np.zeros((4, 6), dtype=bool)
    assert largest_components(empty, 2) == []
    assert not largest_component(empty).any()
    assert bounding_box(empty) == ((0, 3), (0, 5))


@given(MASKS)
def test_a_box_is_inclusive_and_holds_all_of_the_mask(mask: np.ndarray) -> None:
    box = bounding_box(mask)
    assert crop(mask, box).sum() == mask.sum()
    if mask.any():
        for axis, (first, last) in enumerate(box):
            other = tuple(i for i in range(mask.ndim) if i != axis)
            hit = mask.any(axis=other)
            assert hit[first]
            assert hit[last]


@given(MASKS, st.integers(0, 9))
def test_a_grown_box_stays_inside(mask: np.ndarray, margin: int) -> None:
    box = grow(bounding_box(mask), margin, mask.shape)
    assert all(0 <= a <= b < size for (a, b), size in zip(box, mask.shape, strict=True))
    assert mask[slices(box)].sum() == mask.sum()


@given(MASKS)
def test_components_do_not_overlap_and_rebuild_the_mask(mask: np.ndarray) -> None:
    parts = largest_components(mask, mask.size)
    assert np.array_equal(sum((part.astype(int) for part in parts), np.zeros(mask.shape, int)), mask.astype(int))
    sizes = [part.sum() for part in parts]
    assert sizes == sorted(sizes, reverse=True)
