"""The structure loss against its formula, its edge cases, and both readings of the weights."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chestflow.imaging.regions import edge_map
from chestflow.losses import structure
from chestflow.losses.structure import (
    UNLABELLED,
    border_weight,
    deep_supervision_loss,
    kinds_loss,
    mask_edge,
    structure_loss,
    weighted_bce,
    weighted_iou_loss,
)
from chestflow.nn.inf_net import SegmentationOutput


def blob(n: int = 2, size: int = 48) -> torch.Tensor:
    mask = torch.zeros(n, 1, size, size)
    for index in range(n):
        mask[index, :, 10 + index : 25, 8 : 20 + 4 * index] = 1
    return mask


def scores(like: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def naive_weight(mask: np.ndarray) -> np.ndarray:
    """The formula pixel by pixel, with zeros around the picture."""
    padded = np.pad(mask, 15)
    height, width = mask.shape
    around = [[padded[y : y + 31, x : x + 31].mean() for x in range(width)] for y in range(height)]
    return 1 + 5 * np.abs(np.array(around) - mask)


def test_the_weight_is_its_formula() -> None:
    mask = blob(1, 40)
    assert np.allclose(border_weight(mask)[0, 0].numpy(), naive_weight(mask[0, 0].numpy().astype(float)), atol=1e-5)


def test_the_loss_is_its_formula() -> None:
    mask = blob()
    logits = scores(mask)
    expected = []
    for z, m in zip(logits[:, 0].double().numpy(), mask[:, 0].double().numpy(), strict=True):
        w, p = naive_weight(m), 1 / (1 + np.exp(-z))
        bce = (w * -(m * np.log(p) + (1 - m) * np.log(1 - p))).sum() / w.sum()
        both, either = (w * p * m).sum(), (w * (p + m)).sum()
        expected.append(bce + 1 - (both + 1) / (either - both + 1))
    assert structure_loss(logits, mask).item() == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_a_constant_mask_weighs_one_away_from_the_rim(value: float) -> None:
    weight = border_weight(torch.full((1, 1, 48, 48), value))
    assert torch.allclose(weight[..., 15:-15, 15:-15], torch.ones(18, 18), atol=1e-5)
    assert weight.min() >= 1
    # outside the picture counts as 0: the corner of a full mask sees 16 x 16 of 31 x 31
    assert weight[0, 0, 0, 0].item() == pytest.approx(1 + 5 * value * (1 - (16 / 31) ** 2), abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_weights_lie_between_one_and_six(seed: int) -> None:
    mask = (scores(torch.empty(2, 1, 33, 35), seed) > 0).float()
    weight = border_weight(mask)
    assert weight.min() >= 1
    assert weight.max() <= 6
    single = torch.zeros(1, 1, 41, 41)
    single[..., 20, 20] = 1  # the smallest lesion weighs most
    assert border_weight(single)[0, 0, 20, 20].item() == pytest.approx(6 - 5 / 31**2, abs=1e-4)


def test_pictures_smaller_than_the_window_work() -> None:
    assert torch.isfinite(structure_loss(torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)))


@pytest.mark.parametrize("kind", ["blob", "full", "empty"])
def test_a_perfect_answer_costs_nothing(kind: str) -> None:
    mask = {"blob": blob(), "full": torch.ones(2, 1, 48, 48), "empty": torch.zeros(2, 1, 48, 48)}[kind]
    logits = (2 * mask - 1) * 60
    assert weighted_iou_loss(logits, mask, border_weight(mask)).max().item() < 1e-5
    assert structure_loss(logits, mask).item() < 1e-5
    infinite = (2 * mask - 1) * math.inf
    assert weighted_iou_loss(infinite, mask, border_weight(mask)).max().item() == 0


@pytest.mark.parametrize("kind", ["blob", "full", "empty"])
@pytest.mark.parametrize("weighting", ["applied", "cancelled"])
@pytest.mark.parametrize("level", [-60.0, 0.0, 60.0])
def test_extreme_logits_give_finite_losses_and_gradients(kind: str, weighting: str, level: float) -> None:
    mask = {"blob": blob(), "full": torch.ones(2, 1, 48, 48), "empty": torch.zeros(2, 1, 48, 48)}[kind]
    logits = torch.full_like(mask, level, requires_grad=True)
    loss = structure_loss(logits, mask, weighting)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss >= 0
    assert torch.isfinite(logits.grad).all()


def test_an_empty_mask_costs_by_what_is_predicted() -> None:
    mask = torch.zeros(1, 1, 32, 32)
    logits = torch.full_like(mask, -60.0)
    assert weighted_iou_loss(logits, mask, border_weight(mask)).item() == pytest.approx(0, abs=1e-6)
    logits[..., :4, :4] = 60.0
    assert weighted_iou_loss(logits, mask, border_weight(mask)).item() == pytest.approx(1 - 1 / 17)


@pytest.mark.parametrize("seed", range(5))
def test_the_iou_loss_lies_in_zero_to_one(seed: int) -> None:
    mask = (scores(torch.empty(3, 1, 20, 20), seed) > 1).float()
    loss = weighted_iou_loss(30 * scores(mask, seed + 9), mask, border_weight(mask))
    assert ((loss >= 0) & (loss < 1)).all()


def test_at_zero_logits_bce_is_log_two() -> None:
    mask = blob()
    for weighting in ("applied", "cancelled"):
        bce = weighted_bce(torch.zeros_like(mask), mask, border_weight(mask), weighting)
        assert torch.allclose(bce, torch.full((2,), math.log(2)))


def test_cancelled_is_the_published_codes_value_and_applied_is_not() -> None:
    mask, logits = blob(), scores(blob())
    weight = border_weight(mask)
    scalar = F.binary_cross_entropy_with_logits(logits, mask)  # what a true `reduce` makes of it
    published = (weight * scalar).sum((2, 3)) / weight.sum((2, 3))
    assert torch.allclose(weighted_bce(logits, mask, weight, "cancelled"), published.flatten())
    applied = weighted_bce(logits, mask, weight, "applied")
    assert not torch.allclose(applied, published.flatten(), atol=1e-3)
    each = torch.stack(
        [weighted_bce(z[None], m[None], border_weight(m[None])) for z, m in zip(logits, mask, strict=True)]
    )
    assert torch.allclose(applied, each.flatten(), atol=1e-6)  # of each sample, whatever its batch


def test_an_error_at_the_border_costs_more_than_one_far_away_when_weights_apply() -> None:
    mask = blob(1)
    right = (2 * mask - 1) * 4

    def cost(y: int, x: int, weighting: str) -> float:
        logits = right.clone()
        logits[..., y, x] *= -1
        return weighted_bce(logits, mask, border_weight(mask), weighting).item()

    assert cost(9, 14, "applied") > 1.5 * cost(46, 46, "applied") - 0.5 * cost(46, 46, "cancelled")
    assert cost(9, 14, "applied") > cost(46, 46, "applied")
    assert cost(9, 14, "cancelled") == pytest.approx(cost(46, 46, "cancelled"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_cast_up(dtype: torch.dtype) -> None:
    mask = blob()
    logits = scores(mask).to(dtype)
    loss = structure_loss(logits, mask.to(dtype))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(structure_loss(logits.float(), mask).item(), rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert structure_loss(logits, mask).dtype == torch.float32
    full = torch.full((1, 1, 448, 448), 60.0, dtype=torch.float16)  # sums of 2e5 overflow float16
    assert torch.isfinite(structure_loss(full, torch.zeros_like(full)))


def test_soft_pseudo_labels_are_allowed() -> None:
    assert torch.isfinite(structure_loss(scores(blob()), blob() * 0.6))


def test_shapes_and_names_are_checked() -> None:
    with pytest.raises(ValueError, match="mask"):
        structure_loss(torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="applied or cancelled"):
        structure_loss(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), "none")


def test_the_edge_is_the_same_in_torch_and_in_numpy() -> None:
    mask = (F.avg_pool2d(scores(torch.empty(3, 1, 30, 34)), 5, 1, 2) > 0.1).float()
    edge = mask_edge(mask)
    assert set(edge.unique().tolist()) == {0.0, 1.0}
    for one, m in zip(edge[:, 0], mask[:, 0], strict=True):
        assert np.array_equal(one.numpy() > 0, edge_map(m.numpy() > 0))


def test_the_edge_of_a_square_is_two_pixels_wide_and_the_rim_is_none() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    edge = edge_map(mask)
    assert int(edge.sum()) == 12 * 12 - 8 * 8
    assert edge_map(~mask).tolist() == edge.tolist()
    for empty in (np.zeros((6, 6), dtype=bool), np.ones((6, 6), dtype=bool)):
        assert not edge_map(empty).any()
    half = np.zeros((6, 6), dtype=bool)
    half[:, :3] = True
    assert edge_map(half).any(0).tolist() == [False, False, True, True, False, False]
    assert edge_map(np.pad(np.ones((2, 2, 2), dtype=bool), 2)).sum() == 4**3


def output(mask: torch.Tensor, classes: int = 1) -> SegmentationOutput:
    kinds = scores(mask.expand(-1, classes + 1, -1, -1), 9) if classes > 1 else None
    return SegmentationOutput(tuple(scores(mask, k) for k in range(4)), scores(mask, 5), kinds)


def test_deep_supervision_adds_four_maps_and_the_edge() -> None:
    mask = blob()
    o = output(mask)
    parts = deep_supervision_loss(o, mask)
    expected = [structure_loss(z, mask).item() for z in o.maps]
    assert [x.item() for x in parts.maps] == pytest.approx(expected)
    border = F.binary_cross_entropy_with_logits(o.edge, mask_edge(mask)).item()
    assert parts.edge.item() == pytest.approx(border)
    assert parts.kinds.item() == 0
    assert parts.total.item() == pytest.approx(sum(expected) + border)


def test_a_given_edge_and_the_weighting_are_used() -> None:
    mask = blob()
    o = output(mask)
    given = deep_supervision_loss(o, mask, edge=torch.zeros_like(mask))
    assert given.edge.item() == pytest.approx(F.softplus(o.edge).mean().item(), rel=1e-5)
    cancelled = deep_supervision_loss(o, mask, weighting="cancelled")
    assert cancelled.maps[0].item() == pytest.approx(structure_loss(o.maps[0], mask, "cancelled").item())


def test_a_network_without_edge_attention_has_no_edge_loss() -> None:
    mask = blob()
    parts = deep_supervision_loss(SegmentationOutput((scores(mask),)), mask)
    assert len(parts.maps) == 1
    assert parts.edge.item() == 0


def test_kinds_take_cross_entropy_and_labels_need_their_head() -> None:
    mask = blob()
    labels = mask[:, 0].long()
    labels[:, :, :12] *= 2
    o = output(mask, classes=2)
    parts = deep_supervision_loss(o, mask, labels=labels)
    assert parts.kinds.item() == pytest.approx(kinds_loss(o.kinds, labels).item())
    assert deep_supervision_loss(o, mask).kinds.item() == 0
    with pytest.raises(ValueError, match="classes of 2"):
        deep_supervision_loss(output(mask), mask, labels=labels)


def test_cross_entropy_of_kinds_weighs_borders_unless_cancelled() -> None:
    labels = blob()[:, 0].long()
    logits = scores(torch.empty(2, 3, 48, 48))
    plain = F.cross_entropy(logits, labels)
    assert kinds_loss(logits, labels, "cancelled").item() == pytest.approx(plain.item(), rel=1e-5)
    weight = border_weight(blob())[:, 0]
    weighted = (weight * F.cross_entropy(logits, labels, reduction="none")).sum() / weight.sum()
    assert kinds_loss(logits, labels).item() == pytest.approx(weighted.item(), rel=1e-5)
    assert kinds_loss(torch.zeros(2, 3, 48, 48), labels).item() == pytest.approx(math.log(3))


def test_pixels_without_a_known_kind_are_left_out() -> None:
    labels = blob()[:, 0].long()
    logits = scores(torch.empty(2, 3, 48, 48)).requires_grad_()
    labels[1] = UNLABELLED
    kinds_loss(logits, labels).backward()
    assert logits.grad[0].abs().sum() > 0
    assert not logits.grad[1].any()
    logits.grad = None
    nothing = kinds_loss(logits, torch.full_like(labels, UNLABELLED))
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("weighting", ["applied", "cancelled"])
def test_maps_share_their_masks_weight_with_the_same_numbers(weighting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = blob() * 0.8
    o = output(mask)
    alone = [structure_loss(z, mask, weighting) for z in o.maps]
    asked = []
    monkeypatch.setattr(structure, "border_weight", lambda m: asked.append(m) or border_weight(m))
    shared = deep_supervision_loss(o, mask, weighting=weighting).maps
    assert len(asked) == 1
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(x.dtype == torch.float32 for x in deep_supervision_loss(o, mask, weighting=weighting).maps)
