"""The 3D U-Net: its grid, its patches, what it learns, and going on after an interruption."""

import io

import numpy as np
import pytest
import torch

from chestflow.errors import TrainingError
from chestflow.segmentation import volume_network
from chestflow.segmentation.training_loop import Course
from chestflow.segmentation.volume_network import Region, VolumeShape
from tests.code.test_lungs import SPACING, thorax

SHAPE = VolumeShape(4, (16, 32, 32), (8.0, 6.0, 6.0), (-1350.0, 150.0))
TRAINING = {"per_volume": 4, "batch_size": 4, "seed": 0, "threads": 1, "section": "infection.ct_volume"}


def case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hu, lungs = thorax(seed)
    rng = np.random.default_rng(seed)
    infection = np.zeros(lungs.shape, bool)
    z, y, x = rng.integers(6, 20), rng.integers(26, 40), rng.choice([18, 54])
    infection[z : z + 8, y : y + 16, x : x + 14] = True
    infection &= lungs
    hu[infection] = -300
    return hu, lungs, infection


def test_the_region_is_the_lungs_box_on_the_networks_grid() -> None:
    hu, lungs, infection = case(0)
    found = volume_network.region(hu, SPACING, lungs, SHAPE, infection)
    place = volume_network.place_of(lungs, SPACING)
    extent = [part.stop - part.start for part in place]
    want = tuple(round(n * a / b) for n, a, b in zip(extent, SPACING, (8.0, 6.0, 6.0), strict=True))
    assert found.values.shape == found.infection.shape == want
    assert found.values.min() >= -1
    assert found.values.max() <= 1
    assert found.infection.mean() == pytest.approx(infection[place].mean(), rel=0.2)


def test_small_volumes_are_padded_to_a_patch() -> None:
    part = Region(np.zeros((3, 40, 20), np.float32), np.zeros((3, 40, 20), bool))
    drawn = volume_network.patches(part, SHAPE, 3, torch.Generator().manual_seed(0))
    assert {tuple(values.shape) for values, _ in drawn} == {(1, 16, 32, 32)}
    assert all(values[0, 3:].eq(-1).all() for values, _ in drawn)


def test_loss_is_finite_for_empty_masks_and_extreme_logits() -> None:
    empty = torch.zeros(2, 1, 4, 4, 4)
    for logits in (empty, empty + 60, empty - 60):
        assert torch.isfinite(volume_network.loss(logits, empty))
        assert torch.isfinite(volume_network.loss(logits, empty + 1))
    assert volume_network.loss(empty - 60, empty) < 1e-4


def test_it_learns_and_an_interrupted_training_ends_the_same() -> None:
    regions = [volume_network.region(hu, SPACING, lungs, SHAPE, mask) for hu, lungs, mask in map(case, range(8))]
    course, saved = Course(8, 6e-3, "cosine"), io.BytesIO()

    def keep(state: dict) -> None:
        if state["epoch"] == 6:
            torch.save(state, saved)

    whole = volume_network.build(SHAPE, 1)
    volume_network.train(whole, regions, course, after_epoch=keep, **TRAINING)
    later = volume_network.build(SHAPE, 2)
    resume = torch.load(io.BytesIO(saved.getvalue()), weights_only=True)
    volume_network.train(later, regions, course, resume=resume, **TRAINING)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, later.network.state_dict()[name]), name
    hu, lungs, infection = case(9)
    found = volume_network.probability(whole, hu, SPACING, lungs)
    assert found.shape == hu.shape
    assert 0 <= found.min() <= found.max() <= 1
    guess = found > 0.5
    assert 2 * (guess & infection).sum() / (guess.sum() + infection.sum()) > 0.5
    assert not volume_network.probability(whole, hu, SPACING, np.zeros_like(lungs)).any()


def test_a_loss_that_is_not_finite_is_said() -> None:
    part = Region(np.full((16, 32, 32), np.nan, np.float32), np.zeros((16, 32, 32), bool))
    with pytest.raises(TrainingError, match=r"infection\.ct_volume\.lr"):
        volume_network.train(volume_network.build(SHAPE), [part], Course(1, 1e-3), **TRAINING)
