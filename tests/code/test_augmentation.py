import math
from dataclasses import replace

import pytest
import torch

from chestflow.training.augmentation import affine_matrices, crop_matrices, random_affine, random_mirror, random_subset
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


@pytest.mark.parametrize(
    "augment", [random_affine(), random_mirror(), random_subset(), random_subset(how="all_or_none")]
)
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
    for augment in (random_affine(), random_mirror(), random_subset()):
        out = augment(bare, generator())
        assert out.lung is None
        assert out.infection is None


NEUTRAL = dict.fromkeys(("brightness", "contrast", "crop", "ratio"), (1.0, 1.0)) | {
    "degrees": (0.0, 0.0),
    "mirror": False,
    "upside_down": False,
}


def subset(original, seed=0, **options):
    return random_subset(**{**NEUTRAL, **options})(original, generator(seed))


@pytest.mark.parametrize("how", ["subset", "all_or_none"])
def test_subset_of_nothing_changes_nothing(how):
    original = batch(6, 1, 20, 30)
    out = subset(original, how=how)
    torch.testing.assert_close(out.image, original.image, atol=1e-3, rtol=0)
    assert torch.equal(out.lung, original.lung)
    assert torch.equal(out.infection, original.infection)


def changed(out, original):
    return ((out.image - original.image).abs().amax((1, 2, 3)) > 1e-2).float().mean()


def test_a_random_number_of_kinds_is_applied():
    """With n kinds, of which one shows, it is applied in half of the images; all or none as well, but together."""
    original = batch(2000, 1, 4, 6)
    alone = {"brightness": (0.5, 0.5)}
    for how in ("subset", "all_or_none"):
        assert float(changed(subset(original, how=how, **alone), original)) == pytest.approx(0.5, abs=0.04)
    darker = original.image.sum((1, 2, 3)) * 0.75
    both = {"brightness": (0.5, 0.5), "mirror": True}
    out = subset(original, **both)
    dimmed = out.image.sum((1, 2, 3)) < darker
    turned = (out.image / out.image.amax((1, 2, 3), keepdim=True)).sub(
        original.image.flip(3) / original.image.amax((1, 2, 3), keepdim=True)
    ).abs().amax((1, 2, 3)) < 1e-2
    table = torch.stack([(dimmed & turned), (dimmed & ~turned), (~dimmed & turned), (~dimmed & ~turned)], dim=1)
    # k of the 5 kinds is uniform on 0..5, so a given pair is in with E[k (k - 1)] / 20 = 1/3, neither as often
    torch.testing.assert_close(table.float().mean(0), torch.tensor([1, 0.5, 0.5, 1]) / 3, atol=0.05, rtol=0)
    out = subset(original, how="all_or_none", **both)
    dimmed = out.image.sum((1, 2, 3)) < darker
    still = ~((out.image - original.image).abs().amax((1, 2, 3)) > 1e-2)
    assert torch.equal(dimmed, ~still)


def test_brightness_and_contrast_follow_their_definitions():
    original = batch(40, 1, 8, 8)
    out = subset(original, brightness=(0.5, 0.5))
    ratio = out.image.sum((1, 2, 3)) / original.image.sum((1, 2, 3))
    assert set((ratio * 100).round().int().tolist()) == {50, 100}
    out = subset(original, contrast=(0.7, 0.7))
    means = original.image.mean((1, 2, 3)), out.image.mean((1, 2, 3))
    torch.testing.assert_close(*means, atol=0.1, rtol=0)
    ratio = out.image.std((1, 2, 3)) / original.image.std((1, 2, 3))
    assert set((ratio * 100).round().int().tolist()) == {70, 100}


def test_both_mirrors_and_no_other_pixel():
    original = batch(60, 1, 7, 9)
    out = subset(original, mirror=True, upside_down=True)
    seen = set()
    for one, was in zip(out.image, original.image, strict=True):
        forms = {"": was, "m": was.flip(2), "u": was.flip(1), "mu": was.flip(1, 2)}
        found = [name for name, form in forms.items() if torch.allclose(one, form, atol=1e-3)]
        assert len(found) == 1
        seen.add(found[0])
    assert seen == {"", "m", "u", "mu"}


def test_a_crop_enlarges_a_part_within_the_image():
    white = batch(40, 1, 16, 24)
    white = replace(white, image=torch.full_like(white.image, 200.0))
    out = subset(white, crop=(0.3, 0.6), ratio=(0.75, 4 / 3)).image
    assert out[..., 2:-2, 2:-2].min() > 199  # nothing from outside, but for
    assert out.min() > 100  # half a pixel at the picture's own edge
    half = torch.tensor([[0.5, 0.5]])
    matrix = crop_matrices(half, torch.tensor([[-0.5, 0.5]]), torch.zeros(1), torch.ones(1, 2), (8, 8))
    image = torch.rand(1, 1, 8, 8, generator=generator())
    grid = torch.nn.functional.affine_grid(matrix, [1, 1, 8, 8], align_corners=False)
    found = torch.nn.functional.grid_sample(image, grid, align_corners=False)
    corner = torch.nn.functional.interpolate(image[:, :, 4:, :4], (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], corner[..., 1:-1, 1:-1])


def test_a_quarter_turn_is_exact_and_a_rotation_keeps_circles_round():
    square = batch(1, 1, 8, 8).image
    still, one = torch.zeros(1, 2), torch.ones(1, 2)
    matrix = crop_matrices(one, still, torch.tensor([math.pi / 2]), one, (8, 8))
    grid = torch.nn.functional.affine_grid(matrix, [1, 1, 8, 8], align_corners=False)
    turned = torch.nn.functional.grid_sample(square, grid, align_corners=False, padding_mode="border")
    torch.testing.assert_close(turned, square.rot90(1, (2, 3)), atol=1e-2, rtol=0)
    half = torch.tensor([50.0, 20.0])
    matrix = crop_matrices(one, still, torch.tensor([0.7]), one, (40, 100))[0]
    for point in ([1.0, 0.0], [0.0, 1.0], [0.3, -0.7]):
        p = torch.tensor(point)
        assert float(((matrix[:, :2] @ p) * half).norm()) == pytest.approx(float((p * half).norm()), rel=1e-5)


def test_masks_follow_a_subset_and_stay_binary():
    original = batch(30, 1, 32, 24)
    original = replace(original, image=original.lung * 200)
    out = random_subset(brightness=(1.0, 1.0), contrast=(1.0, 1.0))(original, generator(3))
    assert set(out.lung.unique().tolist()) <= {0.0, 1.0}
    assert out.image[out.lung > 0].mean() > out.image[out.lung == 0].mean() + 50
    assert out.image.min() >= 0
    assert out.image.max() <= 255


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="subset or all_or_none"):
        random_subset(how="some")
