"""How well an infection mask fits the truth: each case first, then the mean with a bootstrap over patients.

Overlap and distance judge the mask cut at a threshold; MAE, S-measure and E-measure judge the probabilities. Unlike the
published evaluation, nothing is stretched to [0, 1] by its own range first: that would turn the noise of an empty
answer into an infection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from chestflow.evaluation.intervals import Value, cluster_weights, percentile_interval
from chestflow.evaluation.structure_measures import e_measure, s_measure
from chestflow.imaging.regions import bounding_box, crop

Mask = NDArray[np.bool_]
#: name -> what it says; :func:`measure` gives all of them.
METRICS = {
    "dice": "2 |P n T| / (|P| + |T|); 1 where both are empty, 0 where one is",
    "sensitivity": "found share of the infection; undefined without infection",
    "specificity": "share of the healthy pixels left alone; undefined without healthy pixels",
    "s_measure": "structure measure of the probabilities, alpha 0.5; slices only",
    "e_measure": "enhanced-alignment measure, mean over 256 thresholds; slices only",
    "e_measure_adaptive": "the same at one threshold, twice the mean probability; slices only",
    "mae": "mean absolute error of the probabilities",
    "hd95": "95% Hausdorff distance in mm, or pixels; 0 where both are empty, undefined where one is",
}


def dice(found: Mask, truth: Mask) -> float:
    """Dice's coefficient in [0, 1]: 1 where both masks are empty, 0 where one is."""
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 1.0


def sensitivity(found: Mask, truth: Mask) -> float:
    """Share of the infected pixels that were found; NaN where nothing is infected."""
    positives = int(truth.sum())
    return int((found & truth).sum()) / positives if positives else math.nan


def specificity(found: Mask, truth: Mask) -> float:
    """Share of the healthy pixels that were not marked; NaN where everything is infected."""
    return sensitivity(~found, ~truth)


def mean_absolute_error(probability: NDArray, truth: Mask) -> float:
    """Mean of |p - m| in [0, 1]."""
    return float(np.abs(np.asarray(probability, np.float64) - truth).mean())


def hausdorff95(found: Mask, truth: Mask, spacing: Sequence[float] | None = None) -> float:
    """95% Hausdorff distance between the masks' surfaces.

    The 95th percentile of the distances from each surface element to the other surface, the larger of the two
    directions. A surface is what a mask loses by one face-connected erosion; the picture's rim counts as outside.

    Args:
        found, truth: (H, W) or (D, H, W).
        spacing: mm along each axis; None measures in pixels.

    Returns:
        0 where both masks are empty. NaN where one is: no distance is right, and neither infinity nor the picture's
        diagonal could be averaged; :func:`summarise` says of how many cases it is the mean, and Dice is 0 there.

    Raises:
        ValueError: shapes differ, or the spacing does not fit or is not above 0.
    """
    if found.shape != truth.shape:
        raise ValueError(f"masks of {found.shape} and {truth.shape} cannot be compared")
    if spacing is not None and (len(spacing) != truth.ndim or not min(spacing) > 0):
        raise ValueError(f"spacing is {tuple(spacing)}; it needs {truth.ndim} numbers above 0")
    if not found.any() and not truth.any():
        return 0.0
    if not found.any() or not truth.any():
        return math.nan
    # only what lies around the masks matters, and a distance transform of a whole volume takes seconds
    box = bounding_box(found | truth)
    first, second = (_surface(np.pad(crop(mask, box), 1)) for mask in (found, truth))
    to_second = ndimage.distance_transform_edt(~second, sampling=spacing)[first]
    to_first = ndimage.distance_transform_edt(~first, sampling=spacing)[second]
    return float(max(np.percentile(to_second, 95), np.percentile(to_first, 95)))


def _surface(mask: Mask) -> Mask:
    surface: Mask = mask & ~ndimage.binary_erosion(mask)
    return surface


def measure(
    probability: NDArray, truth: Mask, spacing: Sequence[float] | None = None, threshold: float = 0.5
) -> dict[str, float]:
    """All of :data:`METRICS` of one case; NaN where undefined.

    Args:
        probability: (H, W) or (D, H, W) in [0, 1]; a bool mask is its own probability.
        truth: bool, the same shape.
        spacing: mm along each axis, for ``hd95``; None measures in pixels.
        threshold: the mask is what lies strictly above it.

    Raises:
        ValueError: shapes differ, or a probability is not finite or outside of [0, 1].
    """
    probability, truth = np.asarray(probability, np.float64), np.asarray(truth, dtype=bool)
    if probability.shape != truth.shape or truth.ndim not in (2, 3) or not truth.size:
        raise ValueError(f"probability {probability.shape} and truth {truth.shape} must be one slice or volume")
    # written so that NaN is refused too
    if not (probability.min() >= 0 and probability.max() <= 1):
        raise ValueError("probabilities must be finite and in [0, 1]: give sigmoid(logits)")
    found = probability > threshold
    flat = truth.ndim == 2
    return {
        "dice": dice(found, truth),
        "sensitivity": sensitivity(found, truth),
        "specificity": specificity(found, truth),
        "s_measure": s_measure(probability, truth) if flat else math.nan,
        "e_measure": e_measure(probability, truth) if flat else math.nan,
        "e_measure_adaptive": e_measure(probability, truth, "adaptive") if flat else math.nan,
        "mae": mean_absolute_error(probability, truth),
        "hd95": hausdorff95(found, truth, spacing),
    }


def summarise(
    cases: pd.DataFrame,
    clusters: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    rng: np.random.Generator | None = None,
) -> dict[str, Value]:
    """Mean of each metric over the cases where it is defined, with a 95% bootstrap interval.

    Args:
        cases: one row a case, as :func:`measure` gives it; columns that are no metric are left out.
        clusters: patient (or group) of each case, whose cases are drawn together; None draws cases.
        resamples: of the bootstrap.
        rng: of its draws; by default seeded with 0.

    Returns:
        By metric; ``n`` of a value is the number of cases where it is defined.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    names = np.arange(len(cases)) if clusters is None else np.asarray(clusters)
    weights = cluster_weights(names, resamples, rng).astype(np.float64)  # (resamples, cases)
    summary = {}
    for name in METRICS:
        if name not in cases:
            continue
        values = cases[name].to_numpy(np.float64)
        defined = np.isfinite(values)
        count = int(defined.sum())
        mean = float(values[defined].mean()) if count else math.nan
        drawn = weights[:, defined].sum(1)
        sums = weights[:, defined] @ values[defined]
        replicates = np.divide(sums, drawn, out=np.full(resamples, np.nan), where=drawn > 0)
        summary[name] = percentile_interval(mean, replicates, count, reason="undefined in every case")
    return summary
