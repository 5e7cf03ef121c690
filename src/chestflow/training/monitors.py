"""The few tune-role metrics that choose an epoch. What is reported about a finished run is computed elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

#: monitor -> whether higher is better
MONITORS = {
    "auroc": True,
    "macro_f1": True,
    "macro_sensitivity": True,
    "accuracy": True,
    "loss": False,
    "centre_sensitivity": True,
}
#: Those that a phase without a measure of its own has.
CLASSIFIED = ("auroc", "macro_f1", "macro_sensitivity", "accuracy", "loss")


def tune_metrics(logits: NDArray, target: NDArray[np.int64]) -> dict[str, float]:
    """Metrics of class logits (N, C) against class indices (N,); the last class is the positive one.

    Returns:
        ``loss`` (mean cross entropy), ``auroc`` (last class against the rest; NaN with one side only), ``accuracy``,
        ``macro_f1`` and ``macro_sensitivity`` over the classes that ``target`` holds.
    """
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    # Not the probability, which rounds to 1 for many confident samples at once and so ties them.
    log_odds = logits[:, -1] - np.logaddexp.reduce(logits[:, :-1], axis=1)
    predicted = logits.argmax(1)
    sensitivities, f1 = [], []
    for c in np.unique(target):
        hits = float(((predicted == c) & (target == c)).sum())
        sensitivities.append(hits / (target == c).sum())
        f1.append(2 * hits / ((target == c).sum() + (predicted == c).sum()))
    return {
        "loss": float(-log_p[np.arange(len(target)), target].mean()),
        "auroc": _auroc(log_odds, target == logits.shape[1] - 1),
        "accuracy": float((predicted == target).mean()),
        "macro_f1": float(np.mean(f1)),
        "macro_sensitivity": float(np.mean(sensitivities)),
    }


def centre_metrics(embedding: NDArray[np.float32], target: NDArray[np.int64]) -> dict[str, float]:
    """How well an embedding separates the classes while no classifier is trained.

    Each sample goes to the class whose centre, the mean direction of the class's other samples, is nearest by angle.

    Args:
        embedding: (N, E).
        target: (N,) class indices.

    Returns:
        ``centre_sensitivity``: recall, mean over the classes with at least two samples; NaN where there are none.
    """
    rows = embedding.astype(np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    present = [c for c in np.unique(target) if (target == c).sum() > 1]
    if not present:
        return {"centre_sensitivity": math.nan}
    scores = []
    for c in present:
        own = target == c
        sums = rows[own].sum(0) - rows * own[:, None]  # a sample does not vote for itself
        scores.append((rows * sums).sum(1) / np.maximum(np.linalg.norm(sums, axis=1), 1e-12))
    called = np.array(present)[np.argmax(scores, axis=0)]
    return {"centre_sensitivity": float(np.mean([(called[target == c] == c).mean() for c in present]))}


def _auroc(score: NDArray, positive: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative, ties counting half (Mann and Whitney)."""
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return math.nan
    ranks = pd.Series(score).rank().to_numpy()
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def better(monitor: str, value: float, best: float | None) -> bool:
    """Whether ``value`` improves on ``best``; anything improves on nothing, and any number on NaN."""
    if best is None or math.isnan(best):
        return best is None or not math.isnan(value)
    return value > best if MONITORS[monitor] else value < best
