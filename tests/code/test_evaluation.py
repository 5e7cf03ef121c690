"""Figures against independent references: scikit-learn, brute force, known values, and identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from chestflow.evaluation.calibration import calibration_error, probabilities
from chestflow.evaluation.comparison import mcnemar, paired_delong
from chestflow.evaluation.decision import net_benefit, predictive_values
from chestflow.evaluation.intervals import delong, wilson
from chestflow.evaluation.localisation import best_iou, iou, localise
from chestflow.evaluation.metrics import decide, measure, summarise
from chestflow.tuning.calibration import criterion_of, cut_positions, exact_temperature, scan_thresholds
from chestflow.tuning.ensemble import losses, mix, scan, weight_of

PAPER = {"w_extreme": 0.35, "w_middle": 0.96, "cut_low": 0.001, "cut_high": 0.030}


def _answers(seed: int, n: int = 60, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(classes), rng.integers(0, classes, n - classes)]
    logits = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[y]
    return y, probabilities(logits)


def _point(y: np.ndarray, p: np.ndarray, called: np.ndarray) -> dict[str, float]:
    return {name: float(values[0]) for name, values in measure(y, p, called).items()}


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_figures_are_scikit_learns(seed: int) -> None:
    y, p = _answers(seed)
    called = decide(p)
    found = _point(y, p, called)
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(y, p[:, 1]))
    assert found["pr_auc"] == pytest.approx(reference.average_precision_score(y, p[:, 1]))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(y, called))
    assert found["sensitivity"] == pytest.approx(reference.recall_score(y, called))
    assert found["specificity"] == pytest.approx(reference.recall_score(1 - y, 1 - called))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(y, called, average="macro"))
    assert found["brier"] == pytest.approx(reference.brier_score_loss(y, p[:, 1]))
    if len(set(called)) == 2:
        assert found["mcc"] == pytest.approx(reference.matthews_corrcoef(y, called))


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_identities_that_the_papers_tables_break(seed: int) -> None:
    y, p = _answers(seed)
    found = _point(y, p, decide(p))
    low, high = sorted((found["sensitivity"], found["specificity"]))
    assert low - 1e-12 <= found["accuracy"] <= high + 1e-12
    swapped = _point(1 - y, p[:, ::-1], 1 - decide(p))
    assert swapped["accuracy"] == pytest.approx(found["accuracy"])
    assert swapped["macro_f1"] == pytest.approx(found["macro_f1"])
    assert swapped["sensitivity"] == pytest.approx(found["specificity"])
    warped = np.stack([1 - p[:, 1] ** 3, p[:, 1] ** 3], axis=1)
    assert _point(y, warped, decide(p))["auroc"] == pytest.approx(found["auroc"])
    assert _point(y, p[:, ::-1], decide(p))["auroc"] == pytest.approx(1 - found["auroc"])


def test_what_is_undefined_is_no_number_and_says_why() -> None:
    y, p = np.zeros(6, int), np.tile([0.7, 0.3], (6, 1))
    values = summarise(y, p, decide(p), np.arange(6), resamples=50, rng=np.random.default_rng(0))
    for name in ("auroc", "sensitivity", "precision"):
        assert math.isnan(values[name].value)
        assert values[name].reason
        assert values[name].json()["value"] is None or math.isnan(values[name].json()["value"])
    assert values["specificity"].value == 1.0
    assert values["specificity"].lo < 1.0


@pytest.mark.parametrize(("hits", "lo", "hi"), [(193, 0.930, 0.983), (190, 0.910, 0.973), (188, 0.898, 0.965)])
def test_wilson_gives_the_intervals_computed_for_paper_000(hits: int, lo: float, hi: float) -> None:
    found = wilson(hits, 200)
    assert (round(found.lo, 3), round(found.hi, 3)) == (lo, hi)


def test_delong_agrees_with_a_bootstrap() -> None:
    y, p = _answers(3, 240)
    found = delong(y, p[:, 1])
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(600):
        rows = rng.integers(0, len(y), len(y))
        draws.append(reference.roc_auc_score(y[rows], p[rows, 1]))
    assert found.value == pytest.approx(reference.roc_auc_score(y, p[:, 1]))
    assert found.lo == pytest.approx(np.percentile(draws, 2.5), abs=0.015)
    assert found.hi == pytest.approx(np.percentile(draws, 97.5), abs=0.015)


def test_paired_delong_sees_a_difference_that_is_there_and_none_where_there_is_none() -> None:
    y, p = _answers(5, 300)
    noise = np.random.default_rng(1).normal(size=len(y))
    worse = paired_delong(y == 1, p[:, 1], noise)
    assert worse["p"] < 0.001
    assert worse["difference"].lo > 0
    same = paired_delong(y == 1, p[:, 1], p[:, 1] ** 2)
    assert same["difference"].value == pytest.approx(0)


def test_mcnemar_counts_disagreements_only() -> None:
    first = np.r_[np.ones(50, bool), np.ones(10, bool), np.zeros(1, bool)]
    second = np.r_[np.ones(50, bool), np.zeros(10, bool), np.ones(1, bool)]
    found = mcnemar(first, second)
    assert (found["only_first"], found["only_second"]) == (10, 1)
    assert found["p"] == pytest.approx(2 * sum(math.comb(11, k) for k in (0, 1)) / 2**11)


def test_ece_is_zero_for_calibrated_and_the_gap_for_constant_answers() -> None:
    y = np.tile([0, 0, 0, 1], 50)
    for p, gap in ((0.25, 0.0), (0.85, 0.6)):
        _, ece = calibration_error(y == 1, np.full(200, p))
        assert float(np.ravel(ece)[0]) == pytest.approx(gap, abs=1e-6)


def test_predictive_values_and_net_benefit_by_hand() -> None:
    ppv, npv = predictive_values(0.9, 0.8, 0.1)
    assert float(ppv) == pytest.approx(0.09 / (0.09 + 0.18))
    assert float(npv) == pytest.approx(0.72 / (0.72 + 0.01))
    y, p = np.array([True, True, False, False]), np.array([0.9, 0.4, 0.6, 0.1])
    assert net_benefit(y, p, np.array([0.5]))[0] == pytest.approx(1 / 4 - 1 / 4 * 1.0)


def test_localisation_by_hand() -> None:
    lesion, lung = np.zeros((2, 16, 16), bool)
    lesion[:8, :8] = lung[:, :8] = True
    heat = np.zeros((2, 2), np.float32)
    heat[0, 0] = 1
    found = localise(heat, lesion, lung, threshold=0.5)
    assert found["pointing"] == 1.0
    assert 0 < found["iou"] <= found["best_iou"] <= 1
    assert found["energy_lung"] > found["energy_lesion"] > 0.5
    elsewhere = localise(heat[::-1, ::-1].copy(), lesion, lung, threshold=0.5)
    assert elsewhere["pointing"] == 0.0
    assert elsewhere["iou"] < 0.05
    unknown = localise(heat, np.zeros((16, 16), bool), None, threshold=0.5)
    assert math.isnan(unknown["iou"])
    assert math.isnan(unknown["energy_lung"])
    assert best_iou(lesion, (16, 16)) == pytest.approx(1.0, abs=0.05)
    assert iou(lesion, lesion) == 1.0


@given(st.integers(0, 1000), st.floats(0.05, 20))
@settings(max_examples=30, deadline=None)
def test_temperature_never_changes_the_call(seed: int, temperature: float) -> None:
    logits = np.random.default_rng(seed).normal(size=(20, 3))
    assert (probabilities(logits, temperature).argmax(1) == probabilities(logits).argmax(1)).all()


def test_exact_temperature_undoes_a_known_one() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 2)) * 2
    y = (rng.random(4000) < probabilities(logits)[:, 1]).astype(int)
    assert exact_temperature(logits * 3, y, 0.05, 20) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("criterion", ["youden", "macro_f1", "accuracy"])
def test_the_threshold_scan_is_brute_force(criterion: str) -> None:
    y, p = _answers(9, 40)
    cuts = cut_positions(p[:, 1], 0.02, 0.98)
    fast = scan_thresholds(y, p, cuts, criterion)[0]
    slow = []
    for cut in cuts:
        table = np.zeros((1, 2, 2))
        np.add.at(table[0], (y, (p[:, 1] >= cut).astype(int)), 1)
        slow.append(float(criterion_of(table, criterion)[0]))
    np.testing.assert_allclose(fast, slow)


@given(st.floats(0, 0.3), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_ensemble_weight_is_piecewise_constant_and_the_mix_stays_between(ratio: float, a: float, b: float) -> None:
    w = weight_of(np.array([ratio]), PAPER)
    assert w[0] == (0.35 if ratio < 0.001 or ratio > 0.030 else 0.96)
    first, second = np.array([[1 - a, a]]), np.array([[1 - b, b]])
    mixed = mix(first, second, w)[0, 1]
    assert min(a, b) - 1e-12 <= mixed <= max(a, b) + 1e-12
    assert mix(first, second, np.ones(1))[0, 1] == a
    assert mix(first, second, np.zeros(1))[0, 1] == b


def test_the_cuts_themselves_belong_to_the_middle() -> None:
    assert weight_of(np.array([0.001, 0.030]), PAPER).tolist() == [0.96, 0.96]


def test_the_exact_scan_finds_the_best_weights_and_cuts() -> None:
    rng = np.random.default_rng(0)
    ratio = rng.uniform(0, 0.1, 30)
    y = rng.integers(0, 2, 30)
    p = rng.uniform(0.05, 0.95, (2, 30))
    uniform, balanced = (np.stack([1 - q, q], axis=1) for q in p)
    grid, lows, highs = np.linspace(0, 1, 11), np.array([0.002, 0.004]), np.array([0.02, 0.05])
    truth = [m[np.arange(30), y] for m in (uniform, balanced)]
    table = losses(truth[0], truth[1], grid)
    assert table.shape == (30, 11)
    best = math.inf
    for low in lows:
        for high in highs:
            for i in range(11):
                for j in range(11):
                    w = np.where((ratio < low) | (ratio > high), grid[i], grid[j])
                    mixed = w * truth[0] + (1 - w) * truth[1]
                    best = min(best, float(-np.log(mixed).mean()))
    chosen, total = scan(table, ratio, grid, lows, highs, np.ones(30))
    assert total / 30 == pytest.approx(best, rel=1e-6)
    w = weight_of(ratio, chosen)
    assert float(-np.log(w * truth[0] + (1 - w) * truth[1]).mean()) == pytest.approx(best, rel=1e-6)


def test_against_a_box_the_map_is_boxed_too() -> None:
    """A ring marked by the map fills its bounding box; a far speck of less than a tenth is left out."""
    heat = np.zeros((16, 16), np.float32)
    heat[4:12, 4:12] = 1.0
    heat[6:10, 6:10] = 0.0
    heat[15, 15] = 1.0
    box = np.zeros((16, 16), bool)
    box[4:12, 4:12] = True
    assert localise(heat, box, None, threshold=0.5, boxed=True)["iou"] == 1.0
    assert localise(heat, box, None, threshold=0.5)["iou"] == pytest.approx(48 / 65)
