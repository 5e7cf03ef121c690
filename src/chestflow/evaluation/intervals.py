"""Figures with their uncertainty: Wilson, DeLong (for clusters too) and the patient-clustered bootstrap.

Images of one patient are alike, so an interval that takes them for independent is too narrow. The bootstrap here
resamples patients, and DeLong's variance is summed over patients (Obuchowski, Biometrics 1997).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
Z = 1.959963984540054  # the normal distribution's 97.5th percentile
#: Percentiles of too few finite resamples say nothing.
LEAST_FINITE_SHARE = 0.5


@dataclass(frozen=True)
class Value:
    """A figure with its 95% interval.

    Attributes:
        value: NaN where undefined, never 0 in its stead.
        lo: lower end; NaN where there is no interval.
        hi: upper end.
        n: how many images or patients it rests on.
        reason: why the value or its interval is undefined; None where both are defined.
        method: where the interval comes from: bootstrap, wilson or delong.
    """

    value: float
    lo: float = math.nan
    hi: float = math.nan
    n: int = 0
    reason: str | None = None
    method: str | None = None

    def json(self) -> dict[str, Any]:
        """Plain values; NaN is written as null by :func:`chestflow.files.write_json`."""
        return {
            "value": self.value, "lo": self.lo, "hi": self.hi, "n": self.n, "reason": self.reason, "method": self.method
        }  # fmt: skip


def wilson(successes: float, n: float) -> Value:
    """Wilson's score interval of a proportion (1927), without continuity correction.

    Args:
        successes: 0 to ``n``.
        n: trials; 0 gives NaN with a reason.
    """
    if n <= 0:
        return Value(math.nan, n=0, reason="nothing to take a share of", method="wilson")
    share = successes / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # At 0 and n successes the exact ends are 0 and 1; rounding must not put the share outside its own interval.
    lo, hi = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
    return Value(share, lo, hi, round(n), None, "wilson")


def midranks(x: ArrayLike) -> NDArray[np.float64]:
    """Ranks from 1, ties share their mean."""
    _, inverse, counts = np.unique(np.asarray(x, float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: NDArray[np.float64] = (last - (counts - 1) / 2.0)[inverse]
    return mean


def structural_components(y: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """DeLong's placements: of each positive among the negatives and of each negative among the positives, in [0, 1].

    The mean of either is the AUC. Ties count one half. Sun & Xu, IEEE Signal Processing Letters 2014.

    Args:
        y: bool (N,).
        score: (N,), higher means more positive.
    """
    y, score = np.asarray(y, bool), np.asarray(score, float)
    positive, negative = score[y], score[~y]
    joint = midranks(np.concatenate([positive, negative]))
    m, n = len(positive), len(negative)
    among_negatives = (joint[:m] - midranks(positive)) / n
    among_positives = 1.0 - (joint[m:] - midranks(negative)) / m
    return among_negatives, among_positives


def delong_covariance(y: ArrayLike, scores: ArrayLike, clusters: ArrayLike | None = None) -> tuple[NDArray, NDArray]:
    """AUCs of K scores on the same images, and their covariance.

    Args:
        y: bool (N,), with both classes present.
        scores: (K, N).
        clusters: (N,) patient of each image; None takes images as independent, which is DeLong's own form.

    Returns:
        (K,) and (K, K); the covariance is NaN where fewer than two clusters hold a class.
    """
    y, scores = np.asarray(y, bool), np.atleast_2d(np.asarray(scores, float))
    parts = [structural_components(y, s) for s in scores]
    v10 = np.array([a for a, _ in parts])  # (K, m)
    v01 = np.array([b for _, b in parts])  # (K, n)
    aucs = v10.mean(1)
    m, n = v10.shape[1], v01.shape[1]
    codes = np.arange(len(y)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    number = int(codes.max()) + 1
    with_positive, with_negative = len(np.unique(codes[y])), len(np.unique(codes[~y]))
    if min(with_positive, with_negative) < 2:
        return aucs, np.full((len(scores), len(scores)), np.nan)
    # Sums over each patient of the components' deviations from the AUC, (K, patients).
    d10 = np.array([np.bincount(codes[y], v, number) for v in v10 - aucs[:, None]])
    d01 = np.array([np.bincount(codes[~y], v, number) for v in v01 - aucs[:, None]])
    s10 = d10 @ d10.T * with_positive / ((with_positive - 1) * m * m)
    s01 = d01 @ d01.T * with_negative / ((with_negative - 1) * n * n)
    cross = d10 @ d01.T
    # Only patients with images of both classes contribute here; none do where a patient has one label.
    s11 = (cross + cross.T) * number / ((number - 1) * m * n)
    return aucs, s10 + s01 + s11


def delong(y: ArrayLike, score: ArrayLike, clusters: ArrayLike | None = None) -> Value:
    """AUC with DeLong's interval on the logit scale, which stays inside [0, 1].

    Under perfect separation DeLong's variance is zero; the interval is then Wilson's of the smaller class, counted in
    patients, so that a handful of images does not claim certainty.
    """
    y = np.asarray(y, bool)
    if y.all() or not y.any():
        return Value(math.nan, n=len(y), reason=one_class(y), method="delong")
    aucs, covariance = delong_covariance(y, np.asarray(score, float)[None], clusters)
    auc, variance = float(aucs[0]), float(covariance[0, 0])
    if math.isnan(variance):
        return Value(auc, n=len(y), reason="a class has one patient only, so there is no interval", method="delong")
    if auc <= 0.0 or auc >= 1.0 or variance <= 0.0:
        edge = wilson(auc * smaller_class(y, clusters), smaller_class(y, clusters))
        return Value(auc, edge.lo, edge.hi, len(y), None, "wilson")
    half = Z * math.sqrt(variance) / (auc * (1 - auc))
    logit = math.log(auc / (1 - auc))
    lo, hi = (1 / (1 + math.exp(-x)) for x in (logit - half, logit + half))
    return Value(auc, lo, hi, len(y), None, "delong")


def smaller_class(y: NDArray[np.bool_], clusters: ArrayLike | None) -> int:
    """Patients (images without ``clusters``) of the class that has fewer."""
    names = np.arange(len(y)) if clusters is None else np.asarray(clusters)
    return min(len(np.unique(names[y])), len(np.unique(names[~y])))


def one_class(y: NDArray[np.bool_]) -> str | None:
    """Why nothing can be ranked, or None where both classes are there."""
    if len(y) == 0:
        return "no image"
    if not y.any():
        return "no positive image"
    return "no negative image" if y.all() else None


def cluster_weights(clusters: ArrayLike, resamples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """How often each image occurs when patients are drawn with replacement, (resamples, N)."""
    _, codes = np.unique(np.asarray(clusters), return_inverse=True)
    number = int(codes.max()) + 1 if len(codes) else 0
    if number == 0:
        return np.zeros((resamples, 0), np.float32)
    drawn = rng.multinomial(number, np.full(number, 1.0 / max(number, 1)), size=resamples)
    return drawn.astype(np.float32)[:, codes]


def percentile_interval(
    value: float,
    replicates: NDArray,
    n: int,
    *,
    reason: str | None = None,
    edge: Value | None = None,
    unbias: bool = False,
) -> Value:
    """A figure with the 2.5th and 97.5th percentile of its bootstrap replicates.

    Args:
        value: on the data themselves.
        replicates: (R,), NaN where a resample left it undefined.
        n: images or patients.
        reason: why ``value`` is undefined, where it is.
        edge: analytic interval that stands in where all replicates agree (a share of 0 or 1 has no bootstrap spread).
        unbias: move the interval back by the replicates' mean excess over the value. Resampling adds scatter to each
            bin of a calibration error, so its replicates lie above it, often all of them.
    """
    if math.isnan(value):
        return Value(value, n=n, reason=reason or "undefined on these images", method="bootstrap")
    finite = replicates[np.isfinite(replicates)]
    if len(finite) < max(2, LEAST_FINITE_SHARE * len(replicates)):
        return Value(value, n=n, reason="undefined in most resamples: too few patients", method="bootstrap")
    lo, hi = np.percentile(finite, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])
    if unbias:
        # Errors are not negative, and an interval that misses its own value would help nobody.
        excess = float(finite.mean()) - value
        lo, hi = min(value, max(0.0, lo - excess)), max(value, hi - excess)
    if hi - lo < 1e-12 and edge is not None and math.isfinite(edge.lo):
        return Value(value, edge.lo, edge.hi, n, None, edge.method)
    return Value(value, float(lo), float(hi), n, None, "bootstrap")
