"""Slices of a volume inside the lungs' box, and their answers back in their places."""

import numpy as np

from chestflow.segmentation import volume_slices
from tests.code.test_lungs import SHAPE, SPACING, thorax

WINDOW = (-1350.0, 150.0)


def test_a_window_maps_its_ends_to_black_and_white() -> None:
    hu = np.array([-2000, -1350, -600, 150, 900], np.int16)
    assert volume_slices.grey(hu, WINDOW).tolist() == [0, 0, 128, 255, 255]


def test_boxes_hold_the_lungs_of_their_slice_and_slices_without_lung_are_left_out() -> None:
    _, lungs = thorax()
    lungs[:4] = False
    boxes = volume_slices.lung_boxes(lungs, SPACING)
    assert [z for z, _ in boxes] == list(range(4, SHAPE[0]))
    for z, ((top, bottom), (left, right)) in boxes:
        assert lungs[z, top : bottom + 1, left : right + 1].sum() == lungs[z].sum()
    assert volume_slices.lung_boxes(np.zeros(SHAPE, bool), SPACING) == []


def test_squares_and_back() -> None:
    _, lungs = thorax()
    boxes = volume_slices.lung_boxes(lungs, SPACING)
    infection = lungs.copy()
    infection[:, :40] = False
    squares = volume_slices.mask_squares(infection, boxes, 96)
    assert squares.shape == (len(boxes), 1, 96, 96)
    assert set(np.unique(squares)) == {0, 255}
    back = volume_slices.assemble(squares[:, 0].astype(np.float32) / 255, boxes, lungs.shape) > 0.5
    assert 2 * (back & infection).sum() / (back.sum() + infection.sum()) > 0.97


def test_half_of_the_chosen_slices_hold_infection() -> None:
    _, lungs = thorax()
    infection = np.zeros_like(lungs)
    infection[5:9] = lungs[5:9]
    boxes = volume_slices.lung_boxes(lungs, SPACING)
    chosen = [z for z, _ in volume_slices.choose(boxes, infection, 8, np.random.default_rng(0))]
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 8
    assert sum(5 <= z < 9 for z in chosen) >= 4
    again = [z for z, _ in volume_slices.choose(boxes, infection, 8, np.random.default_rng(0))]
    assert again == chosen
    healthy = volume_slices.choose(boxes, np.zeros_like(lungs), 8, np.random.default_rng(0))
    assert len(healthy) == 8
    assert len(volume_slices.choose(boxes[:3], infection, 8, np.random.default_rng(0))) == 3
