"""Every figure of a classifier, COVID-19 being positive: one module for all methods, no copy per paper.

All figures are computed for many weightings of the images at once, (R, N): one row of ones is the data themselves,
rows of a bootstrap are its resamples. Undefined figures are NaN, and :func:`summarise` says why; they are never 0.

What the papers' columns mean (papers 001, 002 and 004 name several of them differently) is in docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chestflow.evaluation.calibration import calibration_error
from chestflow.evaluation.intervals import (
    Value,
    cluster_weights,
    one_class,
    percentile_interval,
    smaller_class,
    wilson,
)

#: Weighted sums are made over this many elements at a time, so that memory stays flat with the number of images.
CHUNK_ELEMENTS = 4_000_000

#: One-vs-rest figures, in the order of tables.
BINARY = (
    "auroc", "pr_auc", "sensitivity", "specificity", "precision", "npv", "binary_accuracy", "f1", "f1_negative",
    "binary_macro_f1", "youden", "brier", "ece",
)  # fmt: skip
#: Figures over all classes.
OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "mcc", "macro_specificity", "macro_npv", "macro_auroc")
Figures = dict[str, NDArray[np.float64]]


def decide(p: NDArray, threshold: ArrayLike | None = None) -> NDArray[np.int64]:
    """Class that each image is called.

    Args:
        p: (N, C) probabilities, the positive class last.
        threshold: None calls the most probable class (with two classes: positive at 0.5 or above). Else, one number or
            (N,): positive at that probability or above, otherwise the most probable of the other classes; NaN is None.
    """
    most = (p[:, 1] >= 0.5).astype(np.int64) if p.shape[1] == 2 else np.argmax(p, axis=1)
    if threshold is None:
        return most
    threshold, rest = np.asarray(threshold, float), np.argmax(p[:, :-1], axis=1)
    cut = np.where(p[:, -1] >= threshold, p.shape[1] - 1, rest)
    return np.where(np.isnan(threshold), most, cut).astype(np.int64)


def confusion(y: NDArray, called: NDArray, classes: int, weights: NDArray | None = None) -> NDArray[np.float64]:
    """(R, C, C) weighted counts: row is the true class, column what it was called."""
    weights = np.ones((1, len(y))) if weights is None else weights
    cells = np.zeros((len(y), classes * classes), weights.dtype)
    cells[np.arange(len(y)), y * classes + called] = 1.0
    return (weights @ cells).reshape(-1, classes, classes).astype(np.float64)


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    """Quotient, NaN where nothing is divided by nothing."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def ranking(y: NDArray[np.bool_], score: NDArray, weights: NDArray | None = None) -> tuple[NDArray, NDArray]:
    """ROC AUC (ties count one half) and average precision, for each weighting.

    Args:
        y: bool (N,).
        score: (N,).
        weights: (R, N) or None.

    Returns:
        Two of (R,); NaN where a weighting leaves one class only (average precision: no positive).
    """
    weights = np.ones((1, len(y))) if weights is None else weights
    order = np.argsort(-score, kind="stable")
    if not len(order):
        return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])  # images of equal score move together
    rows = max(1, CHUNK_ELEMENTS // len(y))
    aucs, precisions = [], []
    for chunk in (weights[i : i + rows] for i in range(0, len(weights), rows)):
        ordered = chunk[:, order].astype(np.float64)
        tp = np.add.reduceat(ordered * y[order], starts, axis=1)  # positives gained at each distinct score
        fp = np.add.reduceat(ordered * ~y[order], starts, axis=1)
        below = fp.sum(1, keepdims=True) - np.cumsum(fp, axis=1)
        aucs.append(ratio((tp * (below + fp / 2)).sum(1), tp.sum(1) * fp.sum(1)))
        precision = ratio(np.cumsum(tp, axis=1), np.cumsum(tp + fp, axis=1))
        precisions.append(ratio((tp * np.nan_to_num(precision)).sum(1), tp.sum(1)))
    return np.concatenate(aucs), np.concatenate(precisions)


def from_counts(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike, tn: ArrayLike) -> Figures:
    """The figures that follow from a two-by-two table; arrays of one shape."""
    tp, fp, fn, tn = (np.asarray(x, float) for x in (tp, fp, fn, tn))
    sensitivity, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
    f1, f1_negative = ratio(2 * tp, 2 * tp + fp + fn), ratio(2 * tn, 2 * tn + fp + fn)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": ratio(tp, tp + fp),
        "npv": ratio(tn, tn + fn),
        "binary_accuracy": ratio(tp + tn, tp + fp + fn + tn),
        "f1": f1,
        "f1_negative": f1_negative,
        "binary_macro_f1": (f1 + f1_negative) / 2,
        "youden": sensitivity + specificity - 1,
    }


def overall(table: NDArray[np.float64]) -> Figures:
    """Figures over all classes from confusion tables (R, C, C); MCC is Gorodkin's (2004) for more than two."""
    total = table.sum((1, 2))
    hits = np.einsum("rcc->rc", table)
    true, called = table.sum(2), table.sum(1)
    correct = hits.sum(1)
    covariance = correct * total - (true * called).sum(1)
    spread = (total**2 - (true**2).sum(1)) * (total**2 - (called**2).sum(1))
    wrong_calls = called - hits
    rest = total[:, None] - true
    return {
        "accuracy": ratio(correct, total),
        "balanced_accuracy": ratio(hits, true).mean(1),
        "macro_f1": ratio(2 * hits, true + called).mean(1),
        "mcc": ratio(covariance, np.sqrt(np.maximum(spread, 0))),
        "macro_specificity": ratio(rest - wrong_calls, rest).mean(1),
        "macro_npv": ratio(rest - wrong_calls, total[:, None] - called).mean(1),
    }


def one_vs_rest(y: NDArray, p: NDArray, called: NDArray, of: int, weights: NDArray | None = None) -> Figures:
    """:data:`BINARY` figures of one class against all others; arrays (R,)."""
    truth, says, score = y == of, called == of, p[:, of]
    table = confusion(truth.astype(int), says.astype(int), 2, weights)
    auroc, pr_auc = ranking(truth, score, weights)
    brier, ece = calibration_error(truth, score, weights)
    counts = from_counts(table[:, 1, 1], table[:, 0, 1], table[:, 1, 0], table[:, 0, 0])
    return {"auroc": auroc, "pr_auc": pr_auc, **counts, "brier": brier, "ece": ece}


def measure(y: NDArray, p: NDArray, called: NDArray, weights: NDArray | None = None) -> Figures:
    """All figures of one set of answers.

    Args:
        y: int (N,), true class; the positive class is the last one.
        p: (N, C) probabilities.
        called: int (N,), from :func:`decide`.
        weights: (R, N); None is one row of ones.

    Returns:
        name -> (R,): :data:`BINARY` of the positive class, then :data:`OVERALL`.
    """
    classes = p.shape[1]
    figures = one_vs_rest(y, p, called, classes - 1, weights)
    figures |= overall(confusion(y, called, classes, weights))
    if classes == 2:
        figures["macro_auroc"] = figures["auroc"]
    else:
        each = [ranking(y == c, p[:, c], weights)[0] for c in range(classes - 1)]
        figures["macro_auroc"] = np.mean([*each, figures["auroc"]], axis=0)
    return figures


def why_undefined(name: str, y: NDArray, of: int, classes: int) -> str:
    """The reason that a figure is NaN on these images."""
    truth = y == of
    alone = one_class(truth)
    if name in ("sensitivity", "pr_auc") and not truth.any():
        return "no positive image"
    if name in ("auroc", "specificity", "youden") and alone:
        return alone
    if name == "precision":
        return "nothing was called positive"
    if name == "npv":
        return "nothing was called negative"
    if name == "f1":
        return "no image is positive and none was called so"
    if name in ("f1_negative", "binary_macro_f1"):
        return "a side neither occurs nor was called"
    if name == "mcc":
        return "all images are of one class, or all were called one class"
    if name in OVERALL and len(y):
        missing = sorted(set(range(classes)) - set(y.tolist()))
        return f"no image of class index {', '.join(map(str, missing))}" if missing else "a class was never called"
    return "no image"


def _edge(name: str, value: float, y: NDArray, called: NDArray, of: int, patients: NDArray) -> Value | None:
    """Analytic interval, counted in patients, for a share or AUC that a bootstrap cannot spread (0 or 1)."""
    truth, says = y == of, called == of
    within = {
        "sensitivity": (truth, says), "specificity": (~truth, ~says), "precision": (says, truth),
        "npv": (~says, ~truth), "binary_accuracy": (np.ones_like(truth), truth == says),
        "accuracy": (np.ones_like(truth), y == called),
    }  # fmt: skip
    if name in within:
        among, hit = within[name]
        number = len(np.unique(patients[among]))
        return wilson(float(hit[among].mean()) * number, number) if number else None
    if name in ("auroc", "macro_auroc") and math.isfinite(value) and not one_class(truth):
        number = smaller_class(truth, patients)
        return wilson(value * number, number)
    return None


def summarise(
    y: NDArray,
    p: NDArray,
    called: NDArray,
    patients: ArrayLike,
    *,
    resamples: int,
    rng: np.random.Generator,
    of: int | None = None,
) -> dict[str, Value]:
    """All figures with intervals from a bootstrap over patients.

    Args:
        y: int (N,), true class.
        p: (N, C) probabilities.
        called: int (N,).
        patients: (N,), the patient of each image; for figures per patient each row is its own.
        resamples: of the bootstrap.
        rng: its stream.
        of: a class index gives :data:`BINARY` of that class against the rest; None gives all of :func:`measure`.
    """
    patients, classes = np.asarray(patients), p.shape[1]
    positive = classes - 1 if of is None else of

    def figures(weights: NDArray | None) -> Figures:
        return measure(y, p, called, weights) if of is None else one_vs_rest(y, p, called, positive, weights)

    point = figures(None)
    replicates: dict[str, list[NDArray]] = {name: [] for name in point}
    for rows in _rows(resamples, len(y)):
        for name, values in figures(cluster_weights(patients, rows, rng)).items():
            replicates[name].append(values)
    return {
        name: percentile_interval(
            float(values[0]),
            np.concatenate(replicates[name]),
            len(y),
            reason=why_undefined(name, y, positive, classes) if math.isnan(values[0]) else None,
            edge=_edge(name, float(values[0]), y, called, positive, patients),
            unbias=name == "ece",
        )
        for name, values in point.items()
    }


def _rows(resamples: int, n: int) -> Iterator[int]:
    """Resamples to hold at a time."""
    at_once = max(1, CHUNK_ELEMENTS // max(n, 1))
    for start in range(0, resamples, at_once):
        yield min(at_once, resamples - start)
