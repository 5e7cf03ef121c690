"""Two methods on the same images: paired DeLong, paired bootstrap over patients, McNemar's exact test, and as an option
paper 004's paired t-test over folds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from chestflow.errors import DataError
from chestflow.evaluation.intervals import (
    Value,
    Z,
    cluster_weights,
    delong_covariance,
    one_class,
    percentile_interval,
)
from chestflow.evaluation.metrics import measure
from chestflow.files import read_json, read_parquet

#: Tests by name: the first two are always made, the third has to be asked for.
DELONG, MCNEMAR, PAIRED_T = "delong", "mcnemar", "paired_t"
TESTS = (DELONG, MCNEMAR, PAIRED_T)
#: Figures whose difference is bootstrapped.
COMPARED = ("auroc", "sensitivity", "specificity", "accuracy", "macro_f1", "brier")


def paired_delong(
    y: ArrayLike, first: ArrayLike, second: ArrayLike, clusters: ArrayLike | None = None
) -> dict[str, Any]:
    """Difference of two AUCs on the same images (DeLong, Biometrics 1988; with clusters, Obuchowski 1997).

    Args:
        y: bool (N,).
        first: scores (N,).
        second: scores (N,).
        clusters: patient of each image.

    Returns:
        ``difference`` (first minus second) as a :class:`Value`, ``z`` and two-sided ``p``; NaN where undefined.
    """
    y = np.asarray(y, bool)
    if one_class(y):
        return {"difference": Value(math.nan, n=len(y), reason=one_class(y)), "z": math.nan, "p": math.nan}
    aucs, covariance = delong_covariance(y, np.stack([np.asarray(first, float), np.asarray(second, float)]), clusters)
    difference = float(aucs[0] - aucs[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if not variance > 1e-15:  # also NaN
        # Two rankings that agree on every pair do not differ; that is a result and not a lack of one.
        same = difference == 0.0 and not math.isnan(variance)
        value = Value(difference, 0.0, 0.0, len(y)) if same else Value(difference, n=len(y), reason="no variance")
        return {"difference": value, "z": 0.0 if same else math.nan, "p": 1.0 if same else math.nan}
    error = math.sqrt(variance)
    z = difference / error
    value = Value(difference, difference - Z * error, difference + Z * error, len(y), None, "delong")
    return {"difference": value, "z": z, "p": math.erfc(abs(z) / math.sqrt(2))}


def mcnemar(first_right: ArrayLike, second_right: ArrayLike) -> dict[str, Any]:
    """McNemar's exact (binomial) test of two methods' right and wrong answers.

    Returns:
        ``only_first`` and ``only_second``, how many images only one method got right, and two-sided ``p`` (1 where
        the two never disagree).
    """
    from scipy.stats import binom

    first_right, second_right = np.asarray(first_right, bool), np.asarray(second_right, bool)
    only_first = int((first_right & ~second_right).sum())
    only_second = int((~first_right & second_right).sum())
    disagreements = only_first + only_second
    p = min(1.0, 2 * float(binom.cdf(min(only_first, only_second), disagreements, 0.5))) if disagreements else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": p}


def paired_t(first: ArrayLike, second: ArrayLike) -> dict[str, Any]:
    """Student's paired t-test of one figure in the same folds, as paper 004 (IV-D) tests its networks.

    The folds' networks share most of their training images, so their figures are not independent and the test finds
    differences too easily; with five folds it also misses much. It stands beside the paper's and decides nothing.

    Args:
        first: the figure in each fold, (F,).
        second: likewise.

    Returns:
        ``difference`` (mean of first minus second), ``t``, two-sided ``p`` and ``folds``, in which both are known. NaN
        with fewer than two folds; where all folds differ alike, t is infinite and p 0, or 0 and 1 where none differs.
    """
    from scipy.stats import t as student

    gaps = np.asarray(first, float) - np.asarray(second, float)
    gaps = gaps[np.isfinite(gaps)]
    if len(gaps) < 2:
        mean = float(gaps.mean()) if len(gaps) else math.nan
        return {"difference": mean, "t": math.nan, "p": math.nan, "folds": len(gaps)}
    mean, spread = float(gaps.mean()), float(gaps.std(ddof=1))
    if spread <= 1e-12 * max(1.0, abs(mean)):
        return {"difference": mean, "t": math.copysign(math.inf, mean) if mean else 0.0, "p": float(mean == 0),
                "folds": len(gaps)}  # fmt: skip
    t = mean / (spread / math.sqrt(len(gaps)))
    return {"difference": mean, "t": t, "p": float(2 * student.sf(abs(t), len(gaps) - 1)), "folds": len(gaps)}


def paired_bootstrap(
    y: NDArray,
    first: tuple[NDArray, NDArray],
    second: tuple[NDArray, NDArray],
    patients: ArrayLike,
    *,
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, Value]:
    """Differences (first minus second) of :data:`COMPARED`; both methods see the same resampled patients.

    Args:
        y: int (N,).
        first: probabilities (N, C) and calls (N,).
        second: likewise.
        patients: patient of each image.
        resamples: of the bootstrap.
        rng: its stream.
    """
    weights = cluster_weights(patients, resamples, rng)
    points = [measure(y, p, called) for p, called in (first, second)]
    drawn = [measure(y, p, called, weights) for p, called in (first, second)]
    return {
        name: percentile_interval(
            float(points[0][name][0] - points[1][name][0]), drawn[0][name] - drawn[1][name], len(y)
        )
        for name in COMPARED
    }


def _cases(name: str, out: Path) -> pd.DataFrame:
    return read_parquet(out / "evaluate" / name / "cases.parquet").sort_values("image_id", ignore_index=True)


def _fold_aucs(name: str, out: Path) -> dict[int, float]:
    """The AUC of each fold, as evaluate measured it."""
    rows = read_json(out / "evaluate" / f"{name}.json")["per_fold"]
    return {row["fold"]: float("nan" if row["metrics"]["auroc"] is None else row["metrics"]["auroc"]) for row in rows}


def compare(
    names: list[str],
    out: Path,
    *,
    resamples: int = 1000,
    seed: int = 0,
    tests: Sequence[str] = (DELONG, MCNEMAR),
) -> pd.DataFrame:
    """Every pair of the named runs and ensembles that answered the same task on the same test images.

    Reads ``out/evaluate/<name>/cases.parquet``, so the labels are not joined a second time. Pairs of different tasks
    or test images are left out: their difference would compare the images and not the methods.

    Args:
        names: runs and ensembles, in the order of the pairs.
        out: the folder of outs.
        resamples: of the paired bootstrap over patients.
        seed: its stream is drawn anew for each pair, so a pair's figures do not depend on which others are asked for.
        tests: of :data:`TESTS`; ``paired_t`` reads ``out/evaluate/<name>.json`` too.

    Returns:
        A row for each pair: ``first, second, task, images, patients``; for each of :data:`COMPARED` the difference
        (first minus second) as ``<figure>, <figure>_lo, <figure>_hi``; ``delong, delong_lo, delong_hi, delong_p``
        (clustered by patient); ``mcnemar_p, only_first, only_second``; if asked for, ``paired_t`` (mean difference of
        the folds' AUCs), ``paired_t_p, paired_t_folds``. Calls are the raw ones (0.5 or most probable).

    Raises:
        DataError: fewer than two names, one was not evaluated, or an unknown test.
    """
    unknown = sorted(set(tests) - set(TESTS))
    if unknown:
        raise DataError(f"no test is called {unknown[0]!r}: name some of {', '.join(TESTS)}")
    if len(names) < 2:
        raise DataError("name at least two runs or ensembles to compare")
    tables = {name: _cases(name, out) for name in names}
    rows = []
    for one, other in itertools.combinations(names, 2):
        a, b = tables[one], tables[other]
        probabilities = [str(c) for c in a.columns if str(c).startswith("p_")]
        same_task = a["task"].iloc[0] == b["task"].iloc[0] and set(probabilities) <= set(b.columns)
        if not same_task or a["image_id"].tolist() != b["image_id"].tolist():
            continue
        y, patients = a["target"].to_numpy(), a["patient_id"].to_numpy()
        mine, theirs = ((t[probabilities].to_numpy(float), t["called"].to_numpy()) for t in (a, b))
        row: dict[str, Any] = {"first": one, "second": other, "task": a["task"].iloc[0], "images": len(a)}
        row["patients"] = a["patient_id"].nunique()
        rng = np.random.default_rng(seed)
        differences = paired_bootstrap(y, mine, theirs, patients, resamples=resamples, rng=rng)
        for figure, value in differences.items():
            row |= {figure: value.value, f"{figure}_lo": value.lo, f"{figure}_hi": value.hi}
        positive = mine[0].shape[1] - 1
        test = paired_delong(y == positive, mine[0][:, -1], theirs[0][:, -1], patients)
        found = test["difference"]
        row |= {"delong": found.value, "delong_lo": found.lo, "delong_hi": found.hi, "delong_p": test["p"]}
        disagreement = mcnemar(mine[1] == y, theirs[1] == y)
        row |= {**{k: disagreement[k] for k in ("only_first", "only_second")}, "mcnemar_p": disagreement["p"]}
        if PAIRED_T in tests:
            folds = [_fold_aucs(name, out) for name in (one, other)]
            shared = sorted(folds[0].keys() & folds[1].keys())
            over = paired_t([folds[0][f] for f in shared], [folds[1][f] for f in shared])
            row |= {"paired_t": over["difference"], "paired_t_p": over["p"], "paired_t_folds": over["folds"]}
        rows.append(row)
    return pd.DataFrame(rows)
