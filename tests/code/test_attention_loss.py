import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chestflow.losses.attention import attended, attention_loss, overlap_loss, soft_mask, unit_range

SIZE = (8, 16, 16)


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def cam(batch=2, seed=0):
    return draw(batch, 1, 2, 4, 4, seed=seed)


def lesion(batch=2, side=4):
    mask = torch.zeros(batch, 1, *SIZE)
    mask[:, :, 2:4, 4 : 4 + side, 4 : 4 + side] = 1
    return mask


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 1), st.floats(0, 1))
def test_overlap_loss_lies_in_the_unit_interval_and_is_symmetric(seed, sharpness, share):
    t = draw(3, 1, 4, 5, 6, seed=seed) ** (1 / sharpness)
    m = (draw(3, 1, 4, 5, 6, seed=seed + 1) < share).float()
    loss = overlap_loss(t, m)
    assert (loss >= 0).all()
    assert (loss <= 1).all()
    torch.testing.assert_close(loss, overlap_loss(m, t))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 0.95))
def test_overlap_loss_of_binaries_is_one_minus_dice(seed, share):
    t = (draw(2, 1, 4, 5, 6, seed=seed) < share).float()
    m = (draw(2, 1, 4, 5, 6, seed=seed + 1) < share).float()
    t[:, :, 0, 0, 0] = 1
    dice = 2 * (t * m).flatten(1).sum(1) / (t + m).flatten(1).sum(1)
    torch.testing.assert_close(overlap_loss(t, m), 1 - dice, atol=1e-5, rtol=0)


def test_overlap_loss_at_its_ends():
    m = lesion()
    torch.testing.assert_close(overlap_loss(m, m), torch.zeros(2))
    torch.testing.assert_close(overlap_loss(m, 1 - m), torch.ones(2))
    torch.testing.assert_close(overlap_loss(torch.zeros_like(m), torch.zeros_like(m)), torch.zeros(2))
    t = draw(2, 1, *SIZE)
    expected = t.square().flatten(1).sum(1) / t.flatten(1).sum(1)  # an empty mask pushes the map to nothing
    torch.testing.assert_close(overlap_loss(t, torch.zeros_like(t)), expected)


def test_soft_mask_lies_between_zero_and_one_and_is_mostly_decided():
    t = soft_mask(cam(), SIZE)
    assert t.shape == (2, 1, *SIZE)
    assert (t > 0).all()
    assert (t <= 1).all()
    assert ((t < 0.05) | (t > 0.95)).float().mean() > 0.8
    star = unit_range(torch.nn.functional.interpolate(cam(), SIZE, mode="trilinear", align_corners=False))
    assert float(t.mean()) == pytest.approx(float((star > 0.4).float().mean()), abs=0.02)


def test_soft_mask_never_reaches_its_ends_but_by_rounding():
    """T is in the open interval (0, 1); in float32 sigmoid(x) is 1 beyond x = 17.4, and so T from 0.174 above beta."""
    t = soft_mask(cam().double(), SIZE)
    grown = torch.nn.functional.interpolate(cam(), SIZE, mode="trilinear", align_corners=False)
    exponent = 100 * (unit_range(grown) - 0.4)
    exact, rest = torch.sigmoid(exponent.double()), torch.sigmoid(-exponent.double())  # 1 - T without its rounding
    torch.testing.assert_close(t, exact.float(), atol=1e-6, rtol=0)
    assert (exact > 0).all()
    assert (rest > 0).all()
    rounded = t == 1
    assert rounded.any()
    assert float(exponent[rounded].min()) > 16.6
    assert float(exponent[~rounded].max()) < 17.4
    inside = exponent < 30  # where float64 holds 1 - T, it is strictly inside and float32 alone has rounded
    assert (inside & rounded).any()
    assert (exact[inside] < 1).all()


def test_a_part_of_a_batch_divides_by_what_it_is_told():
    a, m = cam(3), lesion(3)
    take = torch.tensor([True, False, True])
    each = overlap_loss(soft_mask(a, SIZE), m)
    loss, count = attention_loss(a, m, take, divisor=torch.tensor(2.5))
    torch.testing.assert_close(loss, (each[0] + each[2]) / 2.5)
    assert int(count) == 2
    nobody, none = attention_loss(a, m, torch.zeros(3, dtype=torch.bool), divisor=torch.tensor(2.5))
    assert (float(nobody), int(none)) == (0, 0)


def test_who_takes_part():
    m = lesion(3)
    m[1] = 0
    take = torch.tensor([True, True, False])
    assert attended(m, take).tolist() == [True, False, False]
    assert attended(m, take, skip_empty=False).tolist() == [True, True, False]
    assert attended(None, take).tolist() == [False, False, False]


def test_slope_of_the_soft_mask():
    grid = torch.linspace(0, 1, 1001, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.sigmoid(100 * (grid - 0.4)).sum(), grid)
    assert float(slope.max()) == pytest.approx(25.0, rel=1e-3)
    assert float(slope[(grid - 0.4).abs() > 0.181].max()) < 2e-6


def test_soft_mask_rises_with_the_map():
    low, high = cam(1), cam(1)
    low[0, 0, 0, 0, 0], low[0, 0, 1, 3, 3] = 0.0, 1.0  # pin minimum and maximum
    high.copy_(low)
    high[0, 0, 1, 1, 1] = (high[0, 0, 1, 1, 1] + 0.2).clamp(max=1)
    assert (soft_mask(high, SIZE) >= soft_mask(low, SIZE) - 1e-6).all()


@pytest.mark.parametrize("factor", [1e-3, 0.5, 60.0])
def test_scale_of_the_map_does_not_matter(factor):
    torch.testing.assert_close(soft_mask(factor * cam(), SIZE), soft_mask(cam(), SIZE), atol=1e-3, rtol=0)


def test_upsampling_first_reaches_one_and_the_reverse_need_not():
    peak = torch.zeros(1, 1, 2, 4, 4)
    peak[0, 0, 0, 1, 1], peak[0, 0, 1, 2, 2] = 1.0, 0.2
    first, after = soft_mask(peak, SIZE), soft_mask(peak, SIZE, upsample_first=False)
    assert first.mean() > after.mean()
    for t in (first, after):
        z, y, x = (int(i) for i in torch.unravel_index(t.argmax(), SIZE))
        assert (z // 4, y // 4, x // 4) == (0, 1, 1)


def test_gradient_through_the_range_can_be_cut():
    gradients = []
    for detach in (False, True):
        a = cam(1).requires_grad_()
        overlap_loss(soft_mask(a, SIZE, 10.0, detach_range=detach), lesion(1)).sum().backward()
        gradients.append(a.grad)
    assert not torch.allclose(*gradients)
    # with the range in the graph the loss does not change along A itself, because scale does not matter
    assert float((gradients[0] * cam(1)).sum().abs()) < 1e-4
    assert float((gradients[1] * cam(1)).sum().abs()) > 1e-3


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_map_costs_one_and_teaches_nothing(value):
    a = torch.full((1, 1, 2, 4, 4), value, requires_grad=True)
    loss = overlap_loss(soft_mask(a, SIZE), lesion(1))
    loss.sum().backward()
    assert float(loss) == pytest.approx(1.0, abs=1e-4)
    assert a.grad.abs().max() < 1e-6


def test_only_the_taken_samples_count():
    a, m = cam(3), lesion(3)
    each = overlap_loss(soft_mask(a, SIZE), m)
    loss, count = attention_loss(a, m, torch.tensor([True, False, True]))
    torch.testing.assert_close(loss, (each[0] + each[2]) / 2)
    assert int(count) == 2


def test_untrained_map_and_small_lesion_cost_nearly_one():
    loss, _ = attention_loss(cam(4), lesion(4, side=2), torch.ones(4, dtype=torch.bool))
    assert 0.8 <= float(loss) <= 1.0


@pytest.mark.parametrize("infection", [None, torch.zeros(2, 1, *SIZE), lesion()])
def test_nobody_taken_gives_zero_with_a_zero_gradient(infection):
    a = cam().requires_grad_()
    loss, count = attention_loss(a, infection, torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert float(loss) == 0
    assert int(count) == 0
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_empty_masks_are_left_out_unless_asked_for():
    a, m = cam(), lesion()
    m[1] = 0
    take = torch.ones(2, dtype=torch.bool)
    each = overlap_loss(soft_mask(a, SIZE), m)
    skipped, one = attention_loss(a, m, take)
    kept, two = attention_loss(a, m, take, skip_empty=False)
    torch.testing.assert_close(skipped, each[0])
    torch.testing.assert_close(kept, each.mean())
    assert (int(one), int(two)) == (1, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_computed_in_float32(dtype):
    a = (1000 * cam(1)).to(dtype).requires_grad_()
    m = torch.ones(1, 1, 48, 48, 48)  # 110 592 voxels: their sum overflows float16
    loss, _ = attention_loss(a, m.to(dtype), torch.ones(1, dtype=torch.bool))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()


def test_mirrored_map_and_mask_cost_the_same():
    a, m = cam(), lesion()
    take = torch.ones(2, dtype=torch.bool)
    mirrored, _ = attention_loss(a.flip(-1), m.flip(-1), take)
    torch.testing.assert_close(mirrored, attention_loss(a, m, take)[0])
    torch.testing.assert_close(soft_mask(a.flip(-1), SIZE), soft_mask(a, SIZE).flip(-1), atol=1e-4, rtol=0)


def test_flat_images_work_too():
    loss, _ = attention_loss(draw(2, 1, 4, 4), lesion()[:, :, 2], torch.ones(2, dtype=torch.bool))
    assert 0 < float(loss) <= 1
