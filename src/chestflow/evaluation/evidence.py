"""The parts of a run's evidence: figures per image and patient, per fold, of ensemble members, on external sets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestflow.evaluation.calibration import reliability
from chestflow.evaluation.cases import call, columns, load, pool
from chestflow.evaluation.comparison import paired_delong
from chestflow.evaluation.intervals import delong, wilson
from chestflow.evaluation.metrics import measure, summarise
from chestflow.files import read_parquet

#: (section, probability columns, call column, how it decides)
VIEWS = (("metrics", "p", "called"), ("tuned", "calibrated", "called_tuned"))


def summary(table: pd.DataFrame, classes: list[str], view: tuple[str, str, str], params: Any, **more: Any) -> dict:
    _, prefix, called = view
    values = summarise(
        table["target"].to_numpy(), table[columns(prefix, classes)].to_numpy(float), table[called].to_numpy(),
        table["patient_id"].to_numpy(), resamples=params.evaluate.bootstrap,
        rng=np.random.default_rng(params.seed), **more,
    )  # fmt: skip
    return {name: value.json() for name, value in values.items()}


def analytic(table: pd.DataFrame, classes: list[str], called: str) -> dict[str, Any]:
    """DeLong's interval (over patients) of the AUC and Wilson's of the shares, which take images as independent."""
    y, says = (table["target"] == len(classes) - 1).to_numpy(), (table[called] == len(classes) - 1).to_numpy()
    right = (table["target"] == table[called]).to_numpy()
    shares = {
        "sensitivity": (says[y]), "specificity": ~says[~y], "precision": y[says], "npv": ~y[~says], "accuracy": right
    }  # fmt: skip
    found = {name: wilson(int(hit.sum()), len(hit)).json() for name, hit in shares.items()}
    score = table[f"p_{classes[-1]}"].to_numpy(float)
    return {"auroc": delong(y, score, table["patient_id"].to_numpy()).json(), **found}


def curve_points(table: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    """Points of the ROC and precision-recall curves, and reliability before and after temperature scaling."""
    y = (table["target"] == len(classes) - 1).to_numpy()
    score = table[f"p_{classes[-1]}"].to_numpy(float)
    points: dict[str, Any] = {"roc": None, "pr": None}
    if y.any() and not y.all():
        from sklearn.metrics import precision_recall_curve, roc_curve

        fpr, tpr, _ = roc_curve(y, score)
        precision, recall, _ = precision_recall_curve(y, score)
        points |= {"roc": {"fpr": fpr, "tpr": tpr}, "pr": {"precision": precision, "recall": recall}}
    calibrated = table[f"calibrated_{classes[-1]}"].to_numpy(float)
    return {**points, "reliability": {"raw": reliability(y, score), "calibrated": reliability(y, calibrated)}}


def over_folds(cases: pd.DataFrame, classes: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Each fold's figures, and their mean and sample deviation over folds."""
    rows = []
    for fold, part in call(cases, classes).groupby("fold"):
        row: dict[str, Any] = {"fold": fold, "images": len(part), "threshold": float(part["threshold"].iloc[0])}
        for section, prefix, called in VIEWS:
            p = part[columns(prefix, classes)].to_numpy(float)
            values = measure(part["target"].to_numpy(), p, part[called].to_numpy())
            row[section] = {name: float(v[0]) for name, v in values.items()}
        rows.append(row)
    across: dict[str, Any] = {}
    for section, _, _ in VIEWS:
        across[section] = {}
        for name in rows[0][section]:
            each = np.array([row[section][name] for row in rows])
            defined = each[np.isfinite(each)]
            across[section][name] = {
                "mean": float(defined.mean()) if len(defined) else math.nan,
                "sd": float(defined.std(ddof=1)) if len(defined) > 1 else math.nan,
                "folds": len(defined),
                "reason": None if len(defined) > 1 else "fewer than two folds where it is defined",
            }
    return rows, across


def _answers(run: str, params: Any, out: Path, classes: list[str]) -> np.ndarray:
    """Raw test probabilities of a run, (N, C), in the order of :func:`chestflow.evaluation.cases.load`.

    Read without the run's calibration, which an ensemble's evaluation does not depend on.
    """
    files = [out / "predictions" / run / str(fold) / "test.parquet" for fold in sorted(params.folds)]
    table = pd.concat([read_parquet(file).sort_values("image_id") for file in files])
    return table[columns("p", classes)].to_numpy(float)


def members(name: str, params: Any, out: Path, cases: pd.DataFrame, classes: list[str]) -> dict[str, Any] | None:
    """For an ensemble: its two networks, the paper's weights and the tuned ones on the same test images, raw calls."""
    if name not in params.ensembles:
        return None
    joined = params.ensembles[name]
    uniform, balanced = (_answers(part, params, out, classes) for part in (joined.uniform, joined.balanced))
    variants = {"uniform": uniform, "balanced": balanced}
    for which in ("paper", "tuned"):
        w = cases[f"w_{which}"].to_numpy(float)[:, None]
        variants[which] = w * uniform + (1 - w) * balanced
    found: dict[str, Any] = {}
    for which, mixed in variants.items():
        table = cases.copy()
        table[columns("p", classes)] = mixed
        pooled, _ = pool(table, classes)
        found[which] = summary(pooled, classes, VIEWS[0], params)
        if which == "paper":
            paper = pooled
        if which == "tuned":
            y = (pooled["target"] == len(classes) - 1).to_numpy()
            own, printed = (t[f"p_{classes[-1]}"].to_numpy(float) for t in (pooled, paper))
            test = paired_delong(y, own, printed, pooled["patient_id"].to_numpy())
            found["tuned_minus_paper"] = {"auroc": test["difference"].json(), "p": test["p"]}
    # Whether tuned weights replaced the paper's in a fold shows in the answers themselves.
    used = {
        str(fold): "paper" if (part["w"] == part["w_paper"]).all() else "tuned" for fold, part in cases.groupby("fold")
    }
    return {**found, "names": {"uniform": joined.uniform, "balanced": joined.balanced}, "used": used}


def external(name: str, params: Any, out: Path, classes: list[str]) -> dict[str, Any] | None:
    """Figures on external sets, per set; None where there are none. Folds' networks are averaged."""
    cases = load(name, params, out, "external")
    if cases.empty:
        return None
    pooled, how = pool(cases, classes)
    return {
        str(source): {
            "images": len(part), "patients": int(part["patient_id"].nunique()), "pooling": how,
            **{view[0]: summary(part, classes, view, params) for view in VIEWS},
        }
        for source, part in pooled.groupby("source")
    }  # fmt: skip


def counts(table: pd.DataFrame, classes: list[str]) -> dict[str, int]:
    """How many rows of each true class."""
    return {c: int((table["target"] == i).sum()) for i, c in enumerate(classes)}


def outcomes(
    name: str, pooled: pd.DataFrame, maps: pd.DataFrame, ratio_score: np.ndarray, classes: list[str]
) -> pd.DataFrame:
    """The table of cases: one row an image with truth, answers, whether they were right, and localisation.

    Where folds share test images, the localisation is that of the first fold that has the image.
    """
    kept = ["fold", "image_id", "patient_id", "task", "label", "source", "sex", "age", "site", "ratio", "target"]
    answers = [*columns("p", classes), *columns("calibrated", classes), "threshold", "called", "called_tuned"]
    table = pooled[[*kept, *answers]].copy()
    table.insert(0, "name", name)
    table["right"] = table["called"] == table["target"]
    table["right_tuned"] = table["called_tuned"] == table["target"]
    table["ratio_only"] = ratio_score
    if maps.empty:
        return table
    return table.merge(maps.drop_duplicates("image_id").drop(columns="fold"), on="image_id", how="left")
