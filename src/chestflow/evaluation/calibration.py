"""From logits to probabilities, and how far these can be trusted: temperature, Brier score, ECE, reliability."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chestflow.errors import DataError
from chestflow.files import read_json

#: Equal-width bins of the expected calibration error and the reliability curve.
BINS = 10


@dataclass(frozen=True)
class OperatingPoint:
    """How logits become a call: divided by the temperature, then COVID-19 where its probability is at the threshold.

    Without a threshold the most probable class is called, as the papers do; of two classes that is a threshold of 0.5.
    """

    temperature: float
    threshold: float | None


#: What no paper scales.
RAW_TEMPERATURE = 1.0


def raw_threshold(classes: int) -> float | None:
    """Where the papers cut: 0.5 of two classes; of more they call the most probable one."""
    return 0.5 if classes == 2 else None


def operating_points(file: Path) -> tuple[OperatingPoint, OperatingPoint]:
    """The tuned point of a run or ensemble in a fold, and the one in use: the one place where both are read.

    In use is the raw value of each number unless the tuned one was better on the tune role beyond doubt.

    Args:
        file: ``out/tune/calibration/<name>/<fold>.json``.

    Raises:
        DataError: it is missing or damaged, or was written before these points were decided.
    """
    found = read_json(file)
    try:
        return _point(found), _point(found["default"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{file} lacks temperature, threshold or default: run `dvc repro` again") from None


def _point(values: dict[str, Any]) -> OperatingPoint:
    threshold = values["threshold"]
    return OperatingPoint(float(values["temperature"]), None if threshold is None else float(threshold))


def log_softmax(logits: NDArray, temperature: float = 1.0) -> NDArray[np.float64]:
    """log p of each class, (..., C), stable for large logits.

    Args:
        logits: (..., C).
        temperature: above 0; Guo et al., ICML 2017: one number for all classes, which never changes the order of the
            classes, and so no call of the most probable one.
    """
    scaled = np.asarray(logits, np.float64) / temperature
    scaled = scaled - scaled.max(-1, keepdims=True)
    shifted: NDArray[np.float64] = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    return shifted


def probabilities(logits: NDArray, temperature: float = 1.0) -> NDArray[np.float64]:
    """p of each class after temperature scaling, (..., C)."""
    p: NDArray[np.float64] = np.exp(log_softmax(logits, temperature))
    return p


def log_loss(logits: NDArray, y: NDArray, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the true classes."""
    return float(-log_softmax(logits, temperature)[np.arange(len(y)), y].mean())


def _bin_of(p: NDArray) -> NDArray[np.int64]:
    """Bin k holds p in [k/BINS, (k+1)/BINS); 1.0 belongs to the last one."""
    return np.clip((np.asarray(p) * BINS).astype(np.int64), 0, BINS - 1)


def calibration_error(y: NDArray, p: NDArray, weights: NDArray | None = None) -> tuple[NDArray, NDArray]:
    """Brier score and expected calibration error of a class's probability, for each weighting.

    Args:
        y: bool (N,).
        p: (N,) in [0, 1].
        weights: (R, N) or None for one row of ones.

    Returns:
        Two of (R,). Brier is mean (p - y)^2. ECE is the mean over images of |observed share - mean p| of their bin.
    """
    weights = np.ones((1, len(y))) if weights is None else weights
    truth = np.asarray(y, np.float64)
    total = weights.sum(1, dtype=np.float64)
    total = np.where(total > 0, total, np.nan)
    brier = (weights @ ((p - truth) ** 2).astype(weights.dtype)) / total
    gaps = np.zeros((len(truth), BINS), weights.dtype)
    gaps[np.arange(len(truth)), _bin_of(p)] = truth - p
    # Within a bin, n_b |share - mean p| = |sum of (y - p)|.
    return brier.astype(np.float64), (np.abs(weights @ gaps).sum(1) / total).astype(np.float64)


def reliability(y: NDArray, p: NDArray) -> list[dict[str, Any]]:
    """Points of the reliability curve: each bin that holds images, mean p, observed share and its Wilson ends."""
    from chestflow.evaluation.intervals import wilson

    bins, points = _bin_of(p), []
    for k in range(BINS):
        inside = bins == k
        if inside.any():
            share = wilson(float(np.sum(y[inside])), int(inside.sum()))
            point = {"bin": k, "n": share.n, "mean_p": float(p[inside].mean())}
            points.append({**point, "observed": share.value, "lo": share.lo, "hi": share.hi})
    return points
