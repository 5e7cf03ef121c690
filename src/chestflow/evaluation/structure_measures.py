"""S-measure and E-measure: whether a map has the shape of the truth, beyond pixel by pixel.

Fan et al., "Structure-measure: A New Way to Evaluate Foreground Maps" (ICCV 2017) and "Enhanced-alignment Measure for
Binary Foreground Map Evaluation" (IJCAI 2018); both are columns of Inf-Net's tables.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

_EPS = np.finfo(np.float64).eps
THRESHOLDS = np.arange(256) / 255


def s_measure(probability: NDArray, truth: NDArray[np.bool_], alpha: float = 0.5) -> float:
    """S = alpha S_object + (1 - alpha) S_region, in [0, 1].

    Without any infection it is 1 - mean p, and where all is infected mean p, as in the authors' code.

    Args:
        probability: (H, W) in [0, 1].
        truth: (H, W).
        alpha: the object's share.
    """
    share = float(truth.mean())
    if share == 0.0:
        return float(1 - probability.mean())
    if share == 1.0:
        return float(probability.mean())
    by_object = share * _object(probability[truth]) + (1 - share) * _object(1 - probability[~truth])
    return max(0.0, alpha * by_object + (1 - alpha) * _by_region(probability, truth))


def _object(values: NDArray) -> float:
    """Eq. 5: high where the values are high and alike. 2 x / (x^2 + 1 + s), with the sample deviation s."""
    mean = float(values.mean())
    deviation = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + deviation + _EPS)


def _by_region(probability: NDArray, truth: NDArray[np.bool_]) -> float:
    """SSIM in the four quarters around the truth's centroid, weighted by their area."""
    rows, columns = np.nonzero(truth)
    # the centroid's own row and column belong to the upper and left quarters; halves are rounded up
    row, column = int(np.floor(rows.mean() + 0.5)) + 1, int(np.floor(columns.mean() + 0.5)) + 1
    score = 0.0
    for vertical in (slice(None, row), slice(row, None)):
        for horizontal in (slice(None, column), slice(column, None)):
            part = truth[vertical, horizontal]
            if part.size:
                score += part.size / truth.size * _ssim(probability[vertical, horizontal], part)
    return score


def _ssim(x: NDArray, y: NDArray) -> float:
    """Structural similarity without its stabilising constants: 1 for two black parts, 0 where one is constant."""
    # the mean of equal numbers may differ from them by rounding, and then no variance would be 0
    mean_x, mean_y = float(x.flat[0] if x.min() == x.max() else x.mean()), float(y.mean())
    scale = max(x.size - 1, 1)
    variance_x, variance_y = float(((x - mean_x) ** 2).sum()) / scale, float(((y - mean_y) ** 2).sum()) / scale
    covariance = float(((x - mean_x) * (y - mean_y)).sum()) / scale
    above = 4 * mean_x * mean_y * covariance
    below = (mean_x**2 + mean_y**2) * (variance_x + variance_y)
    if above != 0:
        return above / (below + _EPS)
    return 1.0 if below == 0 else 0.0


def e_measure(
    probability: NDArray, truth: NDArray[np.bool_], thresholds: Literal["mean", "adaptive"] = "mean"
) -> float:
    """Enhanced alignment Q = mean of (1 + xi)^2 / 4 over the pixels, in [0, 1].

    xi = 2 a b / (a^2 + b^2) with a and b the cut map and the truth, each less its mean (eqs. 2 to 5). Without infection
    a pixel counts 1 - p, where all is infected p, with p the cut map.

    Args:
        probability: (H, W) in [0, 1].
        truth: (H, W).
        thresholds: ``mean`` over cuts p >= k / 255 for k of 0 to 255, which Inf-Net's tables hold; ``adaptive``: one
            cut at twice the mean of p, at most 1. A map of zeros is cut above nothing and stays empty.
    """
    cuts = THRESHOLDS if thresholds == "mean" else np.array([min(2 * float(probability.mean()), 1.0)])
    inside, outside = np.sort(probability[truth], axis=None), np.sort(probability[~truth], axis=None)
    # pixels at or above each cut; a cut leaves four kinds of pixels, so counts say all
    hit = len(inside) - np.searchsorted(inside, cuts)
    false = len(outside) - np.searchsorted(outside, cuts)
    if thresholds == "adaptive" and cuts[0] == 0:
        hit, false = np.zeros(1, int), np.zeros(1, int)
    total = truth.size
    if not len(inside):
        return float(np.mean(1 - false / total))
    if not len(outside):
        return float(np.mean(hit / total))
    share = len(inside) / total
    found = (hit + false) / total
    score = np.zeros(len(cuts))
    for marked, infected, count in (
        (1.0, 1.0, hit),
        (1.0, 0.0, false),
        (0.0, 1.0, len(inside) - hit),
        (0.0, 0.0, len(outside) - false),
    ):
        a, b = marked - found, infected - share
        xi = 2 * a * b / (a**2 + b**2 + _EPS)
        score += count / total * (1 + xi) ** 2 / 4
    return float(score.mean())
