"""Attention-guided augmentation against one image at a time, written with slices and F.interpolate."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from chestflow.training.attention_augmentation import (
    KINDS,
    AugmentationSettings,
    attention_augment,
    boxes,
    choose_maps,
    crop_resize,
    dimming,
    draw_uniforms,
    mix_up,
    patching,
    regions,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count=6, side=(64, 96), maps=5, seed=0, channels=1):
    """Standardised noise, peaked maps of a sixteenth of its size, and draws."""
    g = generator(seed)
    image = torch.randn(count, channels, *side, generator=g)
    found = torch.rand(count, maps, side[0] // 32 * 2, side[1] // 32 * 2, generator=g)
    return image, found**8, draw_uniforms(count, g, image.device)


def reference_one(image, maps, uniforms, kind, how):
    """(C, H, W), (M, h, w), (8,) to the augmented (C, H, W), straight from the definition."""
    slot = {"mix_up": 0, "dimming": 1, "patching": 2}[kind]
    weights = [float(m.double().sum() + 1e-12) ** 0.5 for m in maps]
    goal, index = float(uniforms[slot]) * sum(weights), 0
    while index < len(weights) - 1 and sum(weights[: index + 1]) <= goal:
        index += 1
    chosen = maps[index]
    low, high = how.theta_dim if kind == "dimming" else how.theta_box
    theta = low + (high - low) * uniforms[3 + slot]
    if float(chosen.max()) <= 1e-6:
        return image
    height, width = image.shape[1:]
    large = F.interpolate(chosen[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
    mask = large >= theta * chosen.max()
    if kind == "dimming":
        out = image * how.dim_rest
        out[:, mask] = image[:, mask] * how.dim_value
        return out
    ys, xs = mask.nonzero(as_tuple=True)
    y0, y1 = int(ys.min()) - round(how.pad * height), int(ys.max()) + round(how.pad * height)
    x0, x1 = int(xs.min()) - round(how.pad * width), int(xs.max()) + round(how.pad * width)
    crop = image[:, max(y0, 0) : min(y1, height - 1) + 1, max(x0, 0) : min(x1, width - 1) + 1]
    if kind == "mix_up":
        enlarged = F.interpolate(crop[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        return how.gamma * image + (1 - how.gamma) * enlarged
    tall, wide = crop.shape[1:]
    y, x = int((height - tall + 1) * uniforms[6]), int((width - wide + 1) * uniforms[7])
    out = image.clone()
    out[:, y : y + tall, x : x + wide] = crop
    return out


@pytest.mark.parametrize("side", [(64, 64), (64, 96), (96, 64), (224, 224)])
@pytest.mark.parametrize(
    "how", [AugmentationSettings(), AugmentationSettings(pad=0.0, dim_value=0.001, dim_rest=1.001)]
)
def test_equals_one_image_at_a_time(side, how):
    for seed in range(2):
        image, maps, uniforms = batch(side=side, seed=seed, channels=1 + seed)
        maps[1] = 0  # a dead image among living ones
        maps[2] = 0
        maps[2, 3, 1, 0] = 5.0  # one hot cell
        views = attention_augment(image, maps, uniforms, KINDS, how)
        for kind, view in zip(KINDS, views, strict=True):
            expected = torch.stack([reference_one(*one, kind, how) for one in zip(image, maps, uniforms, strict=True)])
            torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)
            assert not torch.equal(view, image)


def test_a_kind_does_not_depend_on_its_company():
    image, maps, uniforms = batch()
    together = attention_augment(image, maps, uniforms, KINDS)
    for kind, view in zip(KINDS, together, strict=True):
        assert torch.equal(attention_augment(image, maps, uniforms, (kind,))[0], view)


def test_an_image_does_not_depend_on_its_neighbours():
    image, maps, uniforms = batch()
    together = attention_augment(image, maps, uniforms, KINDS)
    for i in range(len(image)):
        alone = attention_augment(image[i : i + 1], maps[i : i + 1], uniforms[i : i + 1], KINDS)
        assert all(torch.equal(one[0], all_[i]) for one, all_ in zip(alone, together, strict=True))


def test_no_attention_leaves_the_image_as_it_is():
    image, maps, uniforms = batch()
    for how in (AugmentationSettings(), AugmentationSettings(dim_value=0.001, dim_rest=1.001)):
        for view in attention_augment(image, torch.zeros_like(maps), uniforms, KINDS, how):
            assert torch.equal(view, image)


def test_neutral_settings_are_the_identity():
    image, maps, uniforms = batch()
    still = AugmentationSettings(gamma=1.0, dim_value=1.0)
    mixed, dimmed = attention_augment(image, maps, uniforms, ("mix_up", "dimming"), still)
    assert torch.equal(mixed, image)
    assert torch.equal(dimmed, image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shape_dtype_and_the_input_are_kept_and_nothing_is_differentiated(dtype):
    image, maps, uniforms = batch(channels=3)
    image, maps = image.to(dtype), maps.to(dtype).requires_grad_()
    before = image.clone()
    for view in attention_augment(image, maps, uniforms, KINDS):
        assert (view.shape, view.dtype, view.device) == (image.shape, dtype, image.device)
        assert not view.requires_grad
    assert torch.equal(image, before)


def test_regions_and_boxes_shrink_as_the_threshold_grows():
    _, maps, _ = batch(count=8)
    last_region, last_box = None, None
    for theta in torch.linspace(0.05, 1.0, 12):
        region = regions(maps, theta.expand(8, 5), (64, 96))
        box = boxes(region.flatten(0, 1), pad=0.0)
        if last_region is not None:
            assert not (region & ~last_region).any()
            alive = box[:, 2] > 0
            assert (box[alive, :2] >= last_box[alive, :2]).all()
            assert (box[alive, :2] + box[alive, 2:] <= last_box[alive, :2] + last_box[alive, 2:]).all()
        last_region, last_box = region, box


def test_boxes_hold_the_last_row_and_column():
    region = torch.zeros(5, 20, 30, dtype=torch.bool)
    region[0, 4:9, 10:13] = True
    region[1, 0, 29] = True  # one pixel in a corner
    region[2] = True
    region[3, 7, 3], region[3, 2, 20] = True, True  # apart
    assert boxes(region, 0.0).tolist() == [[4, 10, 5, 3], [0, 29, 1, 1], [0, 0, 20, 30], [2, 3, 6, 18], [0, 0, 0, 0]]
    assert boxes(region, 0.1).tolist() == [[2, 7, 9, 9], [0, 26, 3, 4], [0, 0, 20, 30], [0, 0, 10, 24], [0, 0, 0, 0]]


def test_a_box_of_one_pixel_fills_the_image_or_is_pasted():
    image = torch.randn(2, 1, 8, 10, generator=generator())
    box = torch.tensor([[3, 4, 1, 1], [7, 9, 1, 1]])
    enlarged = crop_resize(image, box)
    assert torch.equal(enlarged[0], image[0, :, 3:4, 4:5].expand(1, 8, 10))
    assert torch.equal(enlarged[1], image[1, :, 7:8, 9:10].expand(1, 8, 10))
    pasted = patching(image, box, torch.tensor([[0.0, 0.0], [0.999, 0.999]]))
    assert pasted[0, 0, 0, 0] == image[0, 0, 3, 4]
    assert (pasted != image).sum() == 1  # the second is pasted onto itself


def test_a_patch_is_a_copy_of_its_box_within_the_image():
    image, maps, uniforms = batch(count=40)
    box = boxes(regions(maps[:, :1], torch.full((40, 1), 0.6), (64, 96))[:, 0], 0.0)
    corners = uniforms[:, 6:].clone()
    corners[0], corners[1] = 0.0, 1 - 2**-24  # the ends of the range
    pasted = patching(image, box, corners)
    moved = 0
    for one, out, (top, left, tall, wide), place in zip(image, pasted, box.tolist(), corners, strict=True):
        y, x = int((64 - tall + 1) * place[0]), int((96 - wide + 1) * place[1])
        assert 0 <= y <= 64 - tall
        assert 0 <= x <= 96 - wide
        assert torch.equal(out[:, y : y + tall, x : x + wide], one[:, top : top + tall, left : left + wide])
        assert torch.isin(out, one).all()
        moved += (y, x) != (top, left)
    assert moved > 10


def test_patches_land_everywhere_they_fit():
    box = torch.tensor([[0, 0, 2, 2]]).expand(4000, -1)
    image = torch.zeros(4000, 1, 4, 4)
    image[:, :, :2, :2] = 1
    place = torch.rand(4000, 2, generator=generator())
    hits = (patching(image, box, place) - image)[:, 0].sum((1, 2))  # 0, 2 or 4 new pixels
    counts = torch.stack([(hits == n).sum() for n in (0, 2, 3, 4)]).float() / 4000
    torch.testing.assert_close(counts, torch.tensor([1 / 9, 2 / 9, 1 / 9, 5 / 9]), atol=0.03, rtol=0)


def test_dimming_pulls_the_region_towards_the_mean_of_zero():
    image = torch.full((1, 1, 4, 4), -2.0)
    region = torch.zeros(1, 4, 4, dtype=torch.bool)
    region[0, :2] = True
    out = dimming(image, region, 0.001, 1.001)
    torch.testing.assert_close(out[0, 0, :2], torch.full((2, 4), -0.002))
    torch.testing.assert_close(out[0, 0, 2:], torch.full((2, 4), -2.002))


def test_mix_up_weighs_image_and_enlarged_box():
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4:, 4:] = 10
    out = mix_up(image, torch.tensor([[4, 4, 4, 4]]), 0.6)
    torch.testing.assert_close(out[0, 0, :4], torch.full((4, 8), 4.0))
    torch.testing.assert_close(out[0, 0, 4:, 4:], torch.full((4, 4), 10.0))


def test_maps_are_chosen_by_the_root_of_their_sum_with_replacement():
    maps = torch.tensor([0.0, 1.0, 4.0, 25.0])[None, :, None, None].expand(20_000, 4, 2, 2) / 4
    chosen = choose_maps(maps, torch.rand(20_000, 3, generator=generator()))
    shares = torch.bincount(chosen.flatten(), minlength=4) / 60_000
    torch.testing.assert_close(shares, torch.tensor([0, 1, 2, 5]) / 8, atol=0.01, rtol=0)
    same = (chosen[:, 0] == chosen[:, 1]).float().mean()
    assert float(same) == pytest.approx((1 + 4 + 25) / 64, abs=0.02)


def test_dead_maps_are_chosen_evenly_and_the_ends_of_the_range_exist():
    maps = torch.zeros(4000, 4, 2, 2)
    shares = torch.bincount(choose_maps(maps, torch.rand(4000, 1, generator=generator())).flatten()) / 4000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.03, rtol=0)
    ends = torch.tensor([[0.0, 1 - 2**-24, 1.0]])
    assert choose_maps(torch.ones(1, 7, 3, 3), ends).tolist() == [[0, 6, 6]]


def test_the_same_generator_draws_the_same():
    cpu = torch.device("cpu")
    first, second, other = (draw_uniforms(4, generator(seed), cpu) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() < 1


def test_nothing_is_read_back_from_the_device():
    """On the meta device there is nothing to read: any look at a value, or a shape that depends on one, fails."""
    with torch.device("meta"):
        image, maps = torch.empty(4, 1, 96, 96), torch.empty(4, 32, 3, 3)
    uniforms = draw_uniforms(4, generator(), image.device)
    for how in (AugmentationSettings(), AugmentationSettings(dim_rest=1.001)):
        views = attention_augment(image, maps, uniforms, KINDS, how)
        assert [v.shape for v in views] == [image.shape] * 3
        assert all(v.is_meta for v in views)
    with pytest.raises((RuntimeError, NotImplementedError)):
        maps.nonzero()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_the_gpu_is_never_waited_for_and_agrees():
    image, maps, _ = batch(side=(96, 96))
    there, coarse = image.cuda(), maps.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        uniforms = draw_uniforms(len(image), generator(5), there.device)
        views = attention_augment(there, coarse, uniforms, KINDS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    same = draw_uniforms(len(image), generator(5), image.device)
    for view, expected in zip(views, attention_augment(image, maps, same, KINDS), strict=True):
        torch.testing.assert_close(view.cpu(), expected, atol=1e-5, rtol=0)


def test_settings_change_what_they_name():
    image, maps, uniforms = batch()
    base = attention_augment(image, maps, uniforms, KINDS)
    changes = {"gamma": 0.3, "pad": 0.0, "dim_value": 0.5, "theta_dim": (0.9, 0.9), "theta_box": (0.85, 0.85)}
    touched = {"gamma": {0}, "pad": {0, 2}, "dim_value": {1}, "theta_dim": {1}, "theta_box": {0, 2}}
    for name, value in changes.items():
        views = attention_augment(image, maps, uniforms, KINDS, replace(AugmentationSettings(), **{name: value}))
        differing = {i for i in range(3) if not torch.equal(views[i], base[i])}
        assert differing == touched[name], name
