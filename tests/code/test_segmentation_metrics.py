"""Segmentation figures against other implementations, loops over the papers' formulae, and the empty cases."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.distance import cdist

from chestflow.evaluation.segmentation_metrics import (
    METRICS,
    dice,
    hausdorff95,
    mean_absolute_error,
    measure,
    sensitivity,
    specificity,
    summarise,
)
from chestflow.evaluation.structure_measures import e_measure, s_measure

MASKS = hnp.arrays(bool, (7, 8))
MAPS = hnp.arrays(np.float64, (7, 8), elements=st.integers(0, 255).map(lambda v: v / 255))


def blobs(seed: int, shape: tuple[int, ...] = (40, 44), level: float = 0.05) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(shape)
    return ndimage.gaussian_filter(noise, 3) > level


def soft(seed: int, shape: tuple[int, int] = (40, 44)) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 3)
    return 1 / (1 + np.exp(-40 * (noise - 0.05)))


def test_overlap_by_hand() -> None:
    truth = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], dtype=bool)
    found = np.array([[1, 0, 1, 0], [1, 1, 0, 0]], dtype=bool)
    assert dice(found, truth) == pytest.approx(6 / 8)
    assert sensitivity(found, truth) == 3 / 4
    assert specificity(found, truth) == 3 / 4
    assert mean_absolute_error(found.astype(float) * 0.5, truth) == pytest.approx((3 * 0.5 + 1 + 0.5) / 8)


@pytest.mark.slow  # for the import; all pairs below are the everyday check
@pytest.mark.parametrize("shape", [(40, 44), (9, 20, 22)])
def test_dice_and_hausdorff_agree_with_monai(shape: tuple[int, ...]) -> None:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice

    spacing = (2.5, 0.7, 0.9)[-len(shape) :]
    for seed in range(3):
        found, truth = blobs(seed, shape), blobs(seed + 50, shape, 0.02)
        a, b = (torch.from_numpy(m[None, None]).float() for m in (found, truth))
        assert dice(found, truth) == pytest.approx(compute_dice(a, b).item(), abs=1e-6)
        reference = compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=list(spacing))
        assert hausdorff95(found, truth, spacing) == pytest.approx(reference.item(), rel=1e-5)


@pytest.mark.parametrize("spacing", [None, (0.7, 1.3)])
def test_hausdorff_agrees_with_all_pairs(spacing: tuple[float, float] | None) -> None:
    for seed in range(4):
        found, truth = blobs(seed), blobs(seed + 9)
        ends = []
        for mask in (found, truth):
            inner = np.zeros_like(mask)
            inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
            ends.append(np.argwhere(mask & ~inner) * np.array(spacing or (1, 1)))
        pairs = cdist(*ends)
        expected = max(np.percentile(pairs.min(1), 95), np.percentile(pairs.min(0), 95))
        assert hausdorff95(found, truth, spacing) == pytest.approx(expected)


def test_hausdorff_of_a_shift_is_the_shift_in_mm() -> None:
    first, second = np.zeros((30, 30), bool), np.zeros((30, 30), bool)
    first[5:10, 5:10] = second[5:10, 15:20] = True
    assert hausdorff95(first, second) == 10
    assert hausdorff95(first, second, (1.0, 0.5)) == 5
    assert hausdorff95(first, first) == 0


def test_empty_masks_are_as_documented() -> None:
    empty, some = np.zeros((8, 8), bool), np.eye(8, dtype=bool)
    both = measure(empty.astype(float), empty)
    assert both["dice"] == 1
    assert both["hd95"] == 0
    assert both["mae"] == 0
    assert both["specificity"] == 1
    assert math.isnan(both["sensitivity"])
    assert both["s_measure"] == both["e_measure_adaptive"] == 1
    for found, truth in ((empty, some), (some, empty)):
        one = measure(found.astype(float), truth)
        assert one["dice"] == 0
        assert math.isnan(one["hd95"])
    assert measure(empty.astype(float), some)["sensitivity"] == 0
    assert measure(some.astype(float), empty)["specificity"] == pytest.approx(1 - 1 / 8)
    assert math.isnan(measure(some.astype(float), np.ones((8, 8), bool))["specificity"])


def test_a_perfect_slice_scores_one_everywhere() -> None:
    truth = blobs(3)
    got = measure(truth.astype(float), truth, (0.7, 0.7))
    assert got.pop("mae") == got.pop("hd95") == 0
    # at the cut p >= 0 alone, 1 of 256, everything is marked
    assert got.pop("e_measure") == pytest.approx((255 + 0.25) / 256, abs=1e-9)
    assert list(got.values()) == pytest.approx([1.0] * len(got))


def test_a_volume_has_no_slice_measures() -> None:
    truth = blobs(1, (6, 12, 12))
    got = measure(truth, truth, (2.0, 1.0, 1.0))
    assert set(got) == set(METRICS)
    assert math.isnan(got["s_measure"])
    assert math.isnan(got["e_measure"])
    assert got["dice"] == 1


@pytest.mark.parametrize(
    ("probability", "truth"),
    [
        (np.zeros((4, 5)), np.zeros((4, 4), bool)),
        (np.zeros(4), np.zeros(4, bool)),
        (np.zeros((0, 4)), np.zeros((0, 4), bool)),
        (np.full((4, 4), 1.2), np.zeros((4, 4), bool)),
        (np.full((4, 4), np.nan), np.zeros((4, 4), bool)),
    ],
)
def test_what_is_no_probability_is_refused(probability: np.ndarray, truth: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"probabilit"):
        measure(probability, truth)


def test_spacing_must_fit() -> None:
    mask = blobs(1)
    for spacing in ((1.0,), (1.0, 0.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="spacing"):
            hausdorff95(mask, mask, spacing)
    with pytest.raises(ValueError, match="compared"):
        hausdorff95(mask, mask[:-1])


def loop_s_measure(p: np.ndarray, g: np.ndarray) -> float:
    """ICCV 2017, eqs. 2 to 8, pixel by pixel; sums over lists only."""
    height, width = g.shape

    def of_object(values: list[float]) -> float:
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0
        return 2 * mean / (mean * mean + 1 + 2 * 0.5 * spread)

    inside = [p[y, x] for y in range(height) for x in range(width) if g[y, x]]
    outside = [1 - p[y, x] for y in range(height) for x in range(width) if not g[y, x]]
    mu = len(inside) / (height * width)
    s_object = mu * of_object(inside) + (1 - mu) * of_object(outside)
    # one-based centroid, rounded half up, belongs to the first quarters
    cy = math.floor(sum(y + 1 for y in range(height) for x in range(width) if g[y, x]) / len(inside) + 0.5)
    cx = math.floor(sum(x + 1 for y in range(height) for x in range(width) if g[y, x]) / len(inside) + 0.5)
    s_region = 0.0
    for ys in (range(cy), range(cy, height)):
        for xs in (range(cx), range(cx, width)):
            pairs = [(p[y, x], float(g[y, x])) for y in ys for x in xs]
            if not pairs:
                continue
            n = len(pairs)
            mx, my = sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n
            vx = sum((a - mx) ** 2 for a, _ in pairs) / max(n - 1, 1)
            vy = sum((b - my) ** 2 for _, b in pairs) / max(n - 1, 1)
            cov = sum((a - mx) * (b - my) for a, b in pairs) / max(n - 1, 1)
            above, below = 4 * mx * my * cov, (mx**2 + my**2) * (vx + vy)
            ssim = above / below if above else float(below == 0)
            s_region += n / (height * width) * ssim
    return max(0.0, 0.5 * s_object + 0.5 * s_region)


def loop_e_measure(p: np.ndarray, g: np.ndarray, cut: float) -> float:
    """IJCAI 2018, eqs. 2 to 5, of the map cut at p >= cut, pixel by pixel."""
    height, width = g.shape
    f = [[float(p[y, x] >= cut) for x in range(width)] for y in range(height)]
    mean_f = sum(map(sum, f)) / (height * width)
    mean_g = float(g.sum()) / (height * width)
    total = 0.0
    for y in range(height):
        for x in range(width):
            if mean_g == 0:
                total += 1 - f[y][x]
            elif mean_g == 1:
                total += f[y][x]
            else:
                a, b = f[y][x] - mean_f, g[y, x] - mean_g
                total += (1 + 2 * a * b / (a * a + b * b)) ** 2 / 4
    return total / (height * width)


@pytest.mark.parametrize("seed", range(4))
def test_s_measure_agrees_with_a_loop(seed: int) -> None:
    p, g = soft(seed, (19, 23)), blobs(seed + 3 * (seed % 2), (19, 23), 0.02)
    assert 0 < g.mean() < 1
    assert s_measure(p, g) == pytest.approx(loop_s_measure(p, g), abs=1e-9)


@pytest.mark.parametrize("cell", [(0, 0), (0, 6), (5, 6), (2, 3)])
def test_s_measure_of_one_pixel_even_in_a_corner_agrees_with_a_loop(cell: tuple[int, int]) -> None:
    g = np.zeros((6, 7), bool)
    g[cell] = True
    p = np.random.default_rng(1).random((6, 7))
    assert s_measure(p, g) == pytest.approx(loop_s_measure(p, g), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_e_measure_agrees_with_a_loop(seed: int) -> None:
    p, g = soft(seed, (9, 11)), np.random.default_rng(seed).random((9, 11)) > 0.3 + 0.2 * seed
    assert 0 < g.mean() < 1
    cuts = [k / 255 for k in range(256)]
    assert e_measure(p, g) == pytest.approx(np.mean([loop_e_measure(p, g, c) for c in cuts]), abs=1e-9)
    adaptive = loop_e_measure(p, g, min(1.0, 2 * p.mean()))
    assert e_measure(p, g, "adaptive") == pytest.approx(adaptive, abs=1e-9)


@pytest.mark.parametrize("full", [False, True])
def test_e_and_s_measures_without_and_with_nothing_but_infection(full: bool) -> None:
    p, g = soft(1, (9, 11)), np.full((9, 11), full)
    cuts = [k / 255 for k in range(256)]
    assert e_measure(p, g) == pytest.approx(np.mean([loop_e_measure(p, g, c) for c in cuts]))
    assert s_measure(p, g) == pytest.approx(p.mean() if full else 1 - p.mean())


def test_a_constant_map_that_is_not_a_round_number_has_no_variance() -> None:
    g = np.zeros((10, 10), bool)
    g[:5] = True
    low, high = s_measure(np.full((10, 10), 0.1), g), s_measure(np.full((10, 10), 0.125), g)
    assert abs(high - low) < 0.05  # 0.1 has no exact mean in binary, 0.125 has


@settings(max_examples=60, deadline=None)
@given(MAPS, MASKS)
def test_all_measures_lie_in_their_ranges(p: np.ndarray, g: np.ndarray) -> None:
    got = measure(p, g)
    for name in METRICS:
        value = got[name]
        assert math.isnan(value) or (value >= 0 and (name == "hd95" or value <= 1 + 1e-9)), name
    assert math.isnan(got["hd95"]) == ((p > 0.5).any() != g.any())


@settings(max_examples=60, deadline=None)
@given(MASKS, MASKS)
def test_symmetries(a: np.ndarray, b: np.ndarray) -> None:
    assert dice(a, b) == dice(b, a)
    assert hausdorff95(a, b) == pytest.approx(hausdorff95(b, a), nan_ok=True)
    assert sensitivity(a, b) == pytest.approx(specificity(~a, ~b), nan_ok=True)
    assert hausdorff95(np.pad(a, 9), np.pad(b, 9)) == pytest.approx(hausdorff95(a, b), nan_ok=True)
    assert e_measure(a.T.astype(float), b.T) == pytest.approx(e_measure(a.astype(float), b))


def table() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"image_id": [f"i{k}" for k in range(24)], "dice": rng.random(24), "hd95": rng.random(24)})
    frame.loc[[1, 2, 3], "hd95"] = np.nan
    return frame.assign(sensitivity=np.nan)


def test_the_summary_is_the_mean_of_the_cases_with_an_interval() -> None:
    frame = table()
    got = summarise(frame, rng=np.random.default_rng(1))
    assert set(got) == {"dice", "hd95", "sensitivity"}
    assert got["dice"].value == pytest.approx(frame["dice"].mean())
    assert got["dice"].lo < got["dice"].value < got["dice"].hi
    assert (got["dice"].n, got["hd95"].n, got["sensitivity"].n) == (24, 21, 0)
    assert got["hd95"].value == pytest.approx(frame["hd95"].mean())
    assert math.isnan(got["sensitivity"].value)
    assert got["sensitivity"].reason
    # the bootstrap's spread of a mean is its standard error
    half = (got["dice"].hi - got["dice"].lo) / 2
    assert half == pytest.approx(1.96 * frame["dice"].std() / math.sqrt(24), rel=0.15)


def test_cases_of_one_patient_are_drawn_together() -> None:
    frame = pd.DataFrame({"dice": np.repeat(np.random.default_rng(6).random(8), 12)})
    patients = np.repeat(np.arange(8), 12).astype(str)
    loose, together = summarise(frame)["dice"], summarise(frame, list(patients))["dice"]
    assert together.hi - together.lo > 2.5 * (loose.hi - loose.lo)
    assert together.value == loose.value


def test_the_summary_repeats_and_takes_an_empty_table() -> None:
    assert str(summarise(table())) == str(summarise(table()))  # as text, in which NaN equals NaN
    assert summarise(pd.DataFrame({"dice": []}))["dice"].n == 0
