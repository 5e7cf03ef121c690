"""The supervised contrastive loss against two plain loops, its bounds, invariances and edge cases."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chestflow.losses.contrastive import npairs, supcon


def unit(count: int, width: int = 8, seed: int = 0) -> Tensor:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=1)


def reference(z: Tensor, target: list[int], t: float) -> list[float]:
    """Each anchor's loss by the formula; NaN where it has no positive."""
    s = [[float(a @ b) / t for b in z] for a in z]
    found = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        mates = [j for j in others if target[j] == target[i]]
        log_sum = math.log(sum(math.exp(s[i][a]) for a in others)) if others else math.nan
        found.append(-sum(s[i][p] - log_sum for p in mates) / len(mates) if mates else math.nan)
    return found


@pytest.mark.parametrize("target", [[0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 2, 2, 0, 3], [0, 0, 0, 0, 0, 0, 0]])
@pytest.mark.parametrize("t", [0.05, 0.5])
def test_it_is_the_double_loop(target: list[int], t: float) -> None:
    z = unit(len(target))
    each = [value for value in reference(z, target, t) if not math.isnan(value)]
    assert float(supcon(z, torch.tensor(target), t)) == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert float(supcon(z, torch.tensor(target), t, reduction="sum")) == pytest.approx(sum(each), rel=1e-5)


def test_each_anchor_is_at_least_the_log_of_its_positives() -> None:
    target = torch.tensor([0, 0, 0, 1, 1, 1])
    assert float(supcon(unit(6), target, 0.1)) >= math.log(2)
    apart = F.one_hot(target, 8).double() * 2 - 1  # as far apart as unit rows can be
    assert float(supcon(F.normalize(apart, dim=1), target, 0.01)) == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("count", [2, 5, 32])
def test_equal_rows_of_one_class_give_log_b_minus_1(count: int) -> None:
    z = unit(1).expand(count, -1)
    assert float(supcon(z, torch.zeros(count, dtype=torch.long), 0.07)) == pytest.approx(math.log(count - 1), abs=1e-5)


def test_collapsed_classes_of_four() -> None:
    """log 3 for the formula; log 4 for the code's, which counts the anchor itself."""
    target = torch.tensor([0] * 4 + [1] * 4)
    z = torch.tensor([[1.0, 0.0]] * 4 + [[-1.0, 0.0]] * 4)
    assert float(supcon(z, target, 0.02)) == pytest.approx(math.log(3), abs=1e-5)
    assert float(npairs(z, target, 0.02)) == pytest.approx(math.log(4), abs=1e-5)


def test_random_rows_start_near_log_b_minus_1_and_a_spread() -> None:
    z, target = unit(256, 128, seed=3), torch.arange(256) % 3
    assert float(supcon(z, target, 0.07)) == pytest.approx(math.log(255) + 0.8, abs=0.15)


def test_order_rotation_and_scale_before_normalising_change_nothing() -> None:
    target = torch.tensor([0, 1, 0, 1, 2, 2])
    z, order = unit(6), torch.tensor([3, 1, 5, 0, 2, 4])
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    here = float(supcon(z, target))
    assert float(supcon(z[order], target[order])) == pytest.approx(here, rel=1e-5)
    assert float(supcon(z @ turn, target)) == pytest.approx(here, rel=1e-4)
    assert float(
        supcon(F.normalize(z * torch.tensor([[1.0], [7], [3], [2], [9], [4]]), dim=1), target)
    ) == pytest.approx(here, rel=1e-5)


def test_an_anchor_without_positives_is_skipped_yet_stays_a_negative() -> None:
    z, target = unit(5), torch.tensor([0, 0, 1, 1, 2])
    without = float(supcon(z[:4], target[:4]))
    with_it = float(supcon(z, target))
    assert math.isfinite(with_it)
    assert with_it >= without  # one more in every denominator


@pytest.mark.parametrize("count", [1, 3])
def test_no_anchor_left_gives_zero_with_a_gradient(count: int) -> None:
    z = unit(count).requires_grad_()
    loss = supcon(z, torch.arange(count))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert z.grad is not None
    assert float(z.grad.abs().sum()) == 0.0


def test_sharp_temperatures_stay_finite_and_in_float32() -> None:
    z = unit(16).to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = supcon(z, torch.arange(16) % 2, 0.01)
    loss.backward()
    assert loss.dtype == torch.float32
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_base_temperature_is_a_factor() -> None:
    z, target = unit(6), torch.tensor([0, 0, 1, 1, 2, 2])
    assert float(supcon(z, target, 0.1, base_temperature=0.07)) == pytest.approx(float(supcon(z, target, 0.1)) / 0.7)


def test_npairs_counts_the_anchor_itself() -> None:
    z, target = unit(4), torch.tensor([0, 0, 1, 2])
    s = z @ z.T / 0.5
    same = (target[:, None] == target[None]).double()
    want = -(same / same.sum(1, keepdim=True) * s.log_softmax(1)).sum(1).mean()
    assert float(npairs(z, target, 0.5)) == pytest.approx(float(want), rel=1e-6)
