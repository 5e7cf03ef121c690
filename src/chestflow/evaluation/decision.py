"""What a decision by the model is worth: predictive values at other prevalences, and net benefit.

Net benefit (Vickers & Elkin, Medical Decision Making 2006) at threshold probability t, per person:
``TP/n - FP/n * t / (1 - t)``. Treating everybody and treating nobody are the yardsticks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chestflow.evaluation.intervals import cluster_weights, percentile_interval
from chestflow.evaluation.metrics import from_counts, ratio

#: Threshold probabilities of the decision curve.
THRESHOLDS: NDArray[np.float64] = np.linspace(0.01, 0.99, 99)


def predictive_values(sensitivity: ArrayLike, specificity: ArrayLike, prevalence: float) -> tuple[NDArray, NDArray]:
    """PPV and NPV by Bayes' rule; NaN where nobody would be called so.

    Args:
        sensitivity: in [0, 1], any shape.
        specificity: likewise.
        prevalence: in (0, 1).
    """
    sensitivity, specificity = np.asarray(sensitivity, float), np.asarray(specificity, float)
    ill, well = prevalence, 1 - prevalence
    ppv = ratio(sensitivity * ill, sensitivity * ill + (1 - specificity) * well)
    npv = ratio(specificity * well, specificity * well + (1 - sensitivity) * ill)
    return ppv, npv


def at_prevalences(
    y: NDArray[np.bool_],
    called: NDArray[np.bool_],
    patients: ArrayLike,
    prevalences: list[float],
    *,
    resamples: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """PPV and NPV at stated prevalences, with intervals from a bootstrap over patients; one dict a prevalence."""
    cells = np.stack([y & called, ~y & called, y & ~called, ~y & ~called], axis=1).astype(np.float32)
    point = from_counts(*cells.sum(0)[:, None])
    drawn = from_counts(*(cluster_weights(patients, resamples, rng) @ cells).T)
    rows = []
    for prevalence in prevalences:
        values = predictive_values(point["sensitivity"], point["specificity"], prevalence)
        spread = predictive_values(drawn["sensitivity"], drawn["specificity"], prevalence)
        row: dict[str, Any] = {"prevalence": prevalence}
        for name, value, replicates in zip(("ppv", "npv"), values, spread, strict=True):
            found = percentile_interval(float(value[0]), replicates, len(y), reason=_why(name, y, called))
            row[name] = found.json()
        rows.append(row)
    return rows


def _why(name: str, y: NDArray[np.bool_], called: NDArray[np.bool_]) -> str:
    if y.all() or not y.any():
        return "one class only, so sensitivity or specificity is undefined"
    return "nothing was called positive" if name == "ppv" else "nothing was called negative"


def net_benefit(y: NDArray[np.bool_], p: NDArray, thresholds: NDArray = THRESHOLDS) -> NDArray[np.float64]:
    """Net benefit of calling positive what has p at the threshold or above, (T,); NaN without images."""
    if not len(y):
        return np.full(len(thresholds), np.nan)
    called = np.asarray(p)[None, :] >= thresholds[:, None]
    tp, fp = (called & y).mean(1), (called & ~y).mean(1)
    benefit: NDArray[np.float64] = tp - fp * thresholds / (1 - thresholds)
    return benefit


def decision_curve(y: NDArray[np.bool_], p: NDArray) -> dict[str, Any]:
    """The model's net benefit beside treating all (``prevalence - (1 - prevalence) t / (1 - t)``) and none (0)."""
    everybody = net_benefit(y, np.ones(len(y)))
    return {"threshold": THRESHOLDS, "model": net_benefit(y, p), "all": everybody, "none": np.zeros(len(THRESHOLDS))}
