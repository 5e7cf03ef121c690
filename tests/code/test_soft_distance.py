"""Soft distance: its target, its bounds, its gradient, and the comparators."""

import math

import pytest
import torch
import torch.nn.functional as F

from chestflow.losses.soft_distance import (
    label_distribution,
    regularised_loss,
    soft_distance,
    soft_target,
    squared_distance,
)


def logits(*shape, seed=0, spread=2.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_label_distributions_sum_as_named(classes):
    target = torch.arange(classes)
    for kind, total in (("unit", 1.0), ("code", 0.99), ("one_hot", 1.0)):
        rows = label_distribution(target, classes, kind)
        torch.testing.assert_close(rows.sum(1), torch.full((classes,), total))
        assert torch.equal(rows.argmax(1), target)
        assert torch.allclose(rows[0, 1:], torch.tensor(0.0 if kind == "one_hot" else 0.01))


def test_which_predictions_are_trusted():
    # sure and right, sure and wrong, unsure and right, exactly at the threshold and right
    found = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.75, 0.25]])
    target = torch.tensor([0, 1, 0, 0])
    replaced = label_distribution(target, 2)
    code = soft_target(found.log(), target, 0.7)
    torch.testing.assert_close(code, torch.stack([found[0], replaced[1], replaced[2], found[3]]))
    paper = soft_target(found.log(), target, 0.7, "paper")
    torch.testing.assert_close(paper, torch.stack([found[0], found[1], replaced[2], found[3]]))


def test_the_threshold_itself_counts_in_the_code_and_not_in_the_paper():
    even, target = torch.zeros(1, 2), torch.tensor([0])
    assert torch.equal(soft_target(even, target, 0.5)[0], torch.tensor([0.5, 0.5]))
    assert torch.equal(soft_target(even, target, 0.5, "paper"), label_distribution(target, 2))


@pytest.mark.parametrize("rule", ["code", "paper"])
def test_at_theta_one_all_targets_come_from_labels(rule):
    saturated = torch.tensor([[200.0, -200.0], [0.0, 0.1]])  # a softmax of exactly 1 in float32
    target = torch.tensor([0, 1])
    assert torch.equal(soft_target(saturated, target, 1.0, rule), label_distribution(target, 2))


@pytest.mark.parametrize("rule", ["code", "paper"])
def test_targets_sum_to_one_and_have_no_gradient(rule):
    raw = logits(50, 3).requires_grad_()
    expected = soft_target(raw, torch.arange(50) % 3, 0.7, rule)
    torch.testing.assert_close(expected.sum(1), torch.ones(50))
    assert not expected.requires_grad


def test_zero_only_where_every_view_agrees():
    raw, target = logits(6, 3, spread=9.0), logits(6, 3, spread=9.0).argmax(1)
    expected = soft_target(raw, target, 0.5)
    agreeing = expected.log().expand(3, 6, 3)
    assert float(soft_distance(expected, agreeing)) == pytest.approx(0, abs=1e-6)
    agreeing = agreeing.clone()
    agreeing[2, 4, 0] += 1
    assert soft_distance(expected, agreeing) > 1e-3


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_each_view_costs_at_most_two_over_the_classes(classes):
    target = torch.arange(8) % classes
    for seed in range(20):
        views = logits(3, 8, classes, seed=seed, spread=30.0)
        expected = soft_target(logits(8, classes, seed=100 + seed, spread=30.0), target)
        for view in views:
            assert 0 <= soft_distance(expected, view[None]) <= 2 / classes + 1e-6
        assert soft_distance(expected, views) <= 6 / classes + 1e-6
    opposite = F.one_hot((target + 1) % classes, classes).float() * 400
    worst = soft_distance(F.one_hot(target, classes).float(), opposite.expand(3, -1, -1))
    assert float(worst) == pytest.approx(6 / classes)


@pytest.mark.parametrize(("classes", "each"), [(2, 0.50), (3, 0.44), (4, 0.375)])
def test_expected_values_of_an_untrained_network(classes, each):
    target = torch.arange(12) % classes
    expected = soft_target(torch.zeros(12, classes), target)
    views = torch.zeros(3, 12, classes)
    smoothed = 2 * (classes - 1) * (1 / classes - 0.01) / classes
    assert smoothed == pytest.approx(each, abs=0.02)
    assert float(soft_distance(expected, views, "mean")) == pytest.approx(smoothed)
    assert float(soft_distance(expected, views)) == pytest.approx(3 * smoothed)
    one_hot = label_distribution(target, classes, "one_hot")
    assert float(soft_distance(one_hot, views, "mean")) == pytest.approx(2 * (1 - 1 / classes) / classes)


def test_sum_adds_the_views_and_mean_averages_them():
    expected, views = soft_target(logits(5, 3), torch.arange(5) % 3), logits(3, 5, 3, seed=1)
    by_hand = [sum((expected - view.softmax(1)).abs().flatten().tolist()) / 15 for view in views]
    assert float(soft_distance(expected, views)) == pytest.approx(sum(by_hand), rel=1e-5)
    assert float(soft_distance(expected, views, "mean")) == pytest.approx(sum(by_hand) / 3, rel=1e-5)


def parts(raw, views, target, **options):
    return {name: float(value) for name, value in regularised_loss(raw, views, target, **options).items()}


def test_without_weight_or_views_it_is_cross_entropy():
    raw, views, target = logits(5, 3), logits(3, 5, 3, seed=1), torch.arange(5) % 3
    plain = pytest.approx(float(F.cross_entropy(raw, target)))
    for reg in ("soft_distance", "l2", "ce_mean", "none"):
        assert parts(raw, views, target, reg=reg, reg_weight=0.0)["loss"] == plain
        assert parts(raw, None, target, reg=reg)["loss"] == plain
    assert "regulariser" not in parts(raw, views, target, reg="none")


def test_comparators_by_hand():
    raw, views, target = logits(4, 2), logits(3, 4, 2, seed=1), torch.tensor([0, 1, 1, 0])
    four = [float(F.cross_entropy(x, target)) for x in (raw, *views)]
    assert parts(raw, views, target, reg="ce_mean")["loss"] == pytest.approx(sum(four) / 4, rel=1e-5)
    truth = F.one_hot(target, 2).float()
    squares = [float((truth - view.softmax(1)).square().mean()) for view in views]
    assert float(squared_distance(target, views)) == pytest.approx(sum(squares), rel=1e-5)
    total = parts(raw, views, target, reg="l2", reg_weight=0.5, reduction="mean")["loss"]
    assert total == pytest.approx(four[0] + 0.5 * sum(squares) / 3, rel=1e-5)


def test_the_regulariser_teaches_the_views_alone():
    raw, views = logits(4, 3).requires_grad_(), logits(3, 4, 3, seed=1).requires_grad_()
    regularised_loss(raw, views, torch.arange(4) % 3)["regulariser"].backward()
    assert raw.grad is None
    assert (views.grad.abs().sum((1, 2)) > 0).all()


@pytest.mark.parametrize("reg", ["soft_distance", "l2", "ce_mean"])
@pytest.mark.parametrize("rule", ["code", "paper"])
@pytest.mark.parametrize("size", [0.0, 60.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_for_extreme_logits_one_class_and_one_sample(reg, rule, size, dtype):
    for count in (1, 4):
        raw = (torch.tensor([[size, -size]] * count).to(dtype)).requires_grad_()
        views = (torch.tensor([[[-size, size]] * count] * 3).to(dtype)).requires_grad_()
        found = regularised_loss(raw, views, torch.zeros(count, dtype=torch.int64), reg=reg, rule=rule)
        assert found["loss"].dtype == torch.float32
        found["loss"].backward()
        assert torch.isfinite(found["loss"])
        assert torch.isfinite(raw.grad).all()
        assert torch.isfinite(views.grad).all()
        if size == 0:
            assert float(found["cross_entropy"].detach()) == pytest.approx(math.log(2), rel=1e-5)
