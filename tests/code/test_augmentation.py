import math
from dataclasses import replace

import pytest
import torch

from chestflow.training.augmentation import affine_matrices, random_affine, random_mirror
from chestflow.training.phases import Batch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(*shape, seed=0):
    image = torch.rand(*shape, generator=generator(seed)) * 255
    count = shape[0]
    return Batch(
        image=image,
        target=torch.arange(count) % 2,
        lung=(image > 120).float(),
        infection=(image > 200).float(),
        has_infection=torch.ones(count, dtype=torch.bool),
        ratio=torch.zeros(count),
        rows=torch.arange(count),
    )


STILL = {"flip": 0.0, "degrees": 0.0, "translate": 0.0, "scale": 0.0, "brightness": 0.0}


@pytest.mark.parametrize("augment", [random_affine(), random_mirror()])
def test_the_same_generator_gives_the_same_pictures(augment):
    first, second, other = (augment(batch(4, 1, 20, 30), generator(s)) for s in (1, 1, 2))
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.infection, second.infection)
    assert not torch.equal(first.image, other.image)


def test_nothing_asked_nothing_changed():
    original = batch(3, 1, 20, 30)
    out = random_affine(**STILL)(original, generator())
    torch.testing.assert_close(out.image, original.image, atol=1e-3, rtol=0)
    assert torch.equal(out.lung, original.lung)


def test_masks_move_with_the_image_and_stay_binary():
    original = batch(8, 1, 32, 24)
    original = replace(original, image=original.lung * 200)
    out = random_affine(brightness=0.0)(original, generator(3))
    assert set(out.lung.unique().tolist()) <= {0.0, 1.0}
    inside = out.image[out.lung > 0]
    outside = out.image[out.lung == 0]
    assert inside.mean() > outside.mean() + 50


def test_values_stay_in_range_and_labels_untouched():
    original = batch(8, 1, 16, 16)
    out = random_affine(brightness=0.5)(original, generator())
    assert out.image.min() >= 0
    assert out.image.max() <= 255
    assert torch.equal(out.target, original.target)
    assert torch.equal(out.rows, original.rows)


def test_only_left_and_right_are_mirrored():
    original = batch(16, 1, 9, 7)
    out = random_affine(**{**STILL, "flip": 1.0})(original, generator())
    torch.testing.assert_close(out.image, original.image.flip(3), atol=1e-3, rtol=0)
    volume = batch(16, 1, 3, 5, 4)
    mirrored = random_mirror()(volume, generator())
    chosen = [not torch.equal(a, b) for a, b in zip(mirrored.image, volume.image, strict=True)]
    assert 0 < sum(chosen) < 16
    for index, was in enumerate(chosen):
        expected = volume.image[index].flip(-1) if was else volume.image[index]
        assert torch.equal(mirrored.image[index], expected)
        assert torch.equal(mirrored.lung[index], (expected > 120).float())


def test_rotation_keeps_distances_in_a_picture_that_is_not_square():
    height, width, angle = 40, 100, math.pi / 6
    one = torch.ones(1)
    matrix = affine_matrices(one * angle, one, torch.zeros(1, 2), one, (height, width))[0]
    half = torch.tensor([width / 2, height / 2])
    for point in ([1.0, 0.0], [0.0, 1.0], [0.3, -0.7]):
        p = torch.tensor(point)
        moved = (matrix[:, :2] @ p) * half
        assert float(moved.norm()) == pytest.approx(float((p * half).norm()), rel=1e-5)


def test_translation_is_a_share_of_the_side():
    one = torch.ones(1)
    matrix = affine_matrices(0 * one, one, torch.tensor([[0.25, 0.0]]), one, (8, 8))
    grid = torch.nn.functional.affine_grid(matrix, [1, 1, 8, 8], align_corners=False)
    image = torch.arange(8.0).repeat(8, 1)[None, None]
    moved = torch.nn.functional.grid_sample(image, grid, align_corners=False)
    torch.testing.assert_close(moved[0, 0, 0, 2:], image[0, 0, 0, :6])


def test_missing_masks_stay_missing():
    bare = replace(batch(2, 1, 8, 8), lung=None, infection=None)
    for augment in (random_affine(), random_mirror()):
        out = augment(bare, generator())
        assert out.lung is None
        assert out.infection is None
