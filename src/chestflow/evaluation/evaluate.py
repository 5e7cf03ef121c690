"""Stage evaluate: the test answers of one run or ensemble, joined to the truth and measured in every way a table needs.

The structure of ``out/evaluate/<name>.json`` is described in docs/evaluation.md.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestflow.evaluation import decision, figures, subgroups
from chestflow.evaluation.calibration import reliability
from chestflow.evaluation.cases import call, columns, load, per_patient, pool
from chestflow.evaluation.comparison import paired_delong
from chestflow.evaluation.intervals import Value, delong, wilson
from chestflow.evaluation.localisation import localise_cases, summarise_localisation
from chestflow.evaluation.metrics import BINARY, OVERALL, confusion, decide, measure, summarise
from chestflow.files import read_json, read_parquet, write_json, write_parquet

#: (section, probability columns, call column, how it decides)
VIEWS = (("metrics", "p", "called"), ("tuned", "calibrated", "called_tuned"))


def _summary(table: pd.DataFrame, classes: list[str], view: tuple[str, str, str], params: Any, **more: Any) -> dict:
    _, prefix, called = view
    values = summarise(
        table["target"].to_numpy(), table[columns(prefix, classes)].to_numpy(float), table[called].to_numpy(),
        table["patient_id"].to_numpy(), resamples=params.evaluate.bootstrap,
        rng=np.random.default_rng(params.seed), **more,
    )  # fmt: skip
    return {name: value.json() for name, value in values.items()}


def _analytic(table: pd.DataFrame, classes: list[str], called: str) -> dict[str, Any]:
    """DeLong's interval (over patients) of the AUC and Wilson's of the shares, which take images as independent."""
    y, says = (table["target"] == len(classes) - 1).to_numpy(), (table[called] == len(classes) - 1).to_numpy()
    right = (table["target"] == table[called]).to_numpy()
    shares = {
        "sensitivity": (says[y]), "specificity": ~says[~y], "precision": y[says], "npv": ~y[~says], "accuracy": right
    }  # fmt: skip
    found = {name: wilson(int(hit.sum()), len(hit)).json() for name, hit in shares.items()}
    score = table[f"p_{classes[-1]}"].to_numpy(float)
    return {"auroc": delong(y, score, table["patient_id"].to_numpy()).json(), **found}


def _curves(table: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    """Points of the ROC and precision-recall curves, and reliability before and after temperature scaling."""
    y = (table["target"] == len(classes) - 1).to_numpy()
    score = table[f"p_{classes[-1]}"].to_numpy(float)
    curves: dict[str, Any] = {"roc": None, "pr": None}
    if y.any() and not y.all():
        from sklearn.metrics import precision_recall_curve, roc_curve

        fpr, tpr, _ = roc_curve(y, score)
        precision, recall, _ = precision_recall_curve(y, score)
        curves |= {"roc": {"fpr": fpr, "tpr": tpr}, "pr": {"precision": precision, "recall": recall}}
    calibrated = table[f"calibrated_{classes[-1]}"].to_numpy(float)
    return {**curves, "reliability": {"raw": reliability(y, score), "calibrated": reliability(y, calibrated)}}


def _folds(cases: pd.DataFrame, classes: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
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
            values = np.array([row[section][name] for row in rows])
            defined = values[np.isfinite(values)]
            across[section][name] = {
                "mean": float(defined.mean()) if len(defined) else math.nan,
                "sd": float(defined.std(ddof=1)) if len(defined) > 1 else math.nan,
                "folds": len(defined),
                "reason": None if len(defined) > 1 else "fewer than two folds where it is defined",
            }
    return rows, across


def _members(name: str, params: Any, out: Path, cases: pd.DataFrame, classes: list[str]) -> dict[str, Any] | None:
    """For an ensemble: its two networks, the paper's weights and the tuned ones on the same test images, raw calls."""
    if name not in params.ensembles:
        return None
    joined = params.ensembles[name]
    p = {part: load(part, params, out)[columns("p", classes)].to_numpy(float) for part in (joined.uniform, joined.balanced)}
    uniform, balanced = p[joined.uniform], p[joined.balanced]
    variants = {"uniform": uniform, "balanced": balanced}
    for which in ("paper", "tuned"):
        w = cases[f"w_{which}"].to_numpy(float)[:, None]
        variants[which] = w * uniform + (1 - w) * balanced
    found: dict[str, Any] = {}
    for which, mixed in variants.items():
        table = cases.copy()
        table[columns("p", classes)] = mixed
        pooled, _ = pool(table, classes)
        found[which] = _summary(pooled, classes, VIEWS[0], params)
        if which == "paper":
            paper = pooled
        if which == "tuned":
            y = (pooled["target"] == len(classes) - 1).to_numpy()
            scores = (t[f"p_{classes[-1]}"].to_numpy(float) for t in (pooled, paper))
            test = paired_delong(y, *scores, pooled["patient_id"].to_numpy())
            found["tuned_minus_paper"] = {"auroc": test["difference"].json(), "p": test["p"]}
    used = {fold: read_json(out / "tune" / "w" / name / f"{fold}.json")["use"] for fold in params.folds}
    return {**found, "names": {"uniform": joined.uniform, "balanced": joined.balanced}, "used": used}


def _external(name: str, params: Any, out: Path, classes: list[str]) -> dict[str, Any] | None:
    """Figures on external sets, per set; None where there are none. Folds' networks are averaged."""
    cases = load(name, params, out, "external")
    if cases.empty:
        return None
    pooled, how = pool(cases, classes)
    return {
        source: {
            "images": len(part), "patients": int(part["patient_id"].nunique()), "pooling": how,
            **{view[0]: _summary(part, classes, view, params) for view in VIEWS},
        }
        for source, part in pooled.groupby("source")
    }  # fmt: skip


def _flat(evidence: dict[str, Any]) -> dict[str, float]:
    """Names and numbers for MLflow; undefined ones are left out, since a metric cannot say why it is missing."""
    flat: dict[str, float] = {}

    def put(key: str, value: dict[str, Any]) -> None:
        for suffix, part in (("", "value"), ("_lo", "lo"), ("_hi", "hi")):
            if value.get(part) is not None and math.isfinite(value[part]):
                flat[key + suffix] = float(value[part])

    for section, unit, prefix in (
        ("metrics", "image", "test"), ("metrics", "patient", "test_patient"), ("tuned", "image", "test_tuned")
    ):  # fmt: skip
        for name, value in evidence[section][unit].items():
            put(f"{prefix}/{name}", value)
    for name, spread in evidence["across_folds"]["metrics"].items():
        if spread["folds"] > 1:
            flat |= {f"folds/{name}_mean": spread["mean"], f"folds/{name}_sd": spread["sd"]}
    if evidence["localisation"]["available"]:
        for name in ("iou", "best_iou", "iou_share", "pointing", "energy_lung"):
            put(f"localisation/{name}", evidence["localisation"]["covid19"][name])
    if evidence["ratio_only"]["available"]:
        put("ratio_only/auroc", evidence["ratio_only"]["baseline"]["auroc"])
    put("test/worst_subgroup_auroc", evidence["worst_subgroup"]["auroc"])
    return flat


def evaluate(name: str, params: Any, out: Path) -> None:
    """Measure one run or ensemble on the test role; writes ``out/evaluate/<name>.json`` and its folder.

    Args:
        name: in ``params.runs`` or ``params.ensembles``.
        params: the checked parameters (:class:`chestflow.config.Params`).
        out: the folder of outs: predictions, calibration, manifest, splits, ratio and packs are read from it.

    Raises:
        DataError: one of these is missing or they do not fit together.
    """
    task, settings = params.task_of(name), params.evaluate
    classes = list(task.classes)
    cases = load(name, params, out)
    pooled, pooling = pool(cases, classes)
    patients = per_patient(pooled, classes)
    attention_run = params.ensembles[name].uniform if name in params.ensembles else name
    run = params.runs[attention_run]
    maps = localise_cases(cases, attention_run, out / "packs" / run.recipe, out, threshold=settings.attention_threshold)
    scores = pd.DataFrame({"image_id": cases["image_id"]})
    scores["score"] = subgroups.ratio_scores(cases, task, out, params.folds)
    ratio_score = scores.groupby("image_id")["score"].mean().reindex(pooled["image_id"]).to_numpy(float)
    units = {"image": pooled, "patient": patients}
    y, called = (pooled["target"] == len(classes) - 1).to_numpy(), (pooled["called_tuned"] == len(classes) - 1).to_numpy()
    groups = subgroups.subgroups(pooled, classes, settings, params.seed)
    per_fold, across = _folds(cases, classes)
    evidence: dict[str, Any] = {
        "name": name, "kind": "ensemble" if name in params.ensembles else "run", "method": run.method,
        "task": task_name(name, params), "classes": classes, "positive": classes[-1], "profile": params.profile,
        "folds": params.folds, "pooling": pooling, "bootstrap": settings.bootstrap,
        "counts": {
            "images": len(pooled), "patients": len(patients), "sources": sorted(pooled["source"].unique()),
            "image": _counts(pooled, classes), "patient": _counts(patients, classes),
        },
        **{
            view[0]: {unit: _summary(table, classes, view, params) for unit, table in units.items()} for view in VIEWS
        },
        "analytic": {unit: _analytic(table, classes, "called") for unit, table in units.items()},
        "per_class": {
            unit: {c: _summary(table, classes, VIEWS[0], params, of=i) for i, c in enumerate(classes)}
            for unit, table in units.items()
        },
        "per_fold": per_fold, "across_folds": across,
        "confusion": {
            unit: {
                key: confusion(table["target"].to_numpy(), table[column].to_numpy(), len(classes))[0].astype(int)
                for key, column in (("raw", "called"), ("tuned", "called_tuned"))
            }
            for unit, table in units.items()
        },
        "prevalence": decision.at_prevalences(
            y, called, pooled["patient_id"].to_numpy(), settings.prevalences,
            resamples=settings.bootstrap, rng=np.random.default_rng(params.seed),
        ),
        "curves": {
            **_curves(pooled, classes),
            "decision": decision.decision_curve(y, pooled[f"calibrated_{classes[-1]}"].to_numpy(float)),
        },
        "subgroups": groups, "worst_subgroup": subgroups.worst(groups),
        "sites_left_out": subgroups.sites_left_out(pooled, classes, settings, params.seed),
        "ratio_only": subgroups.ratio_only(pooled, ratio_score, classes, settings, params.seed),
        "ratio_groups": subgroups.ratio_table(pooled, ratio_score, classes, settings, params.seed),
        "localisation": summarise_localisation(maps, cases, classes, settings, attention_run, params.seed),
        "members": _members(name, params, out, cases, classes),
        "external": _external(name, params, out, classes),
    }  # fmt: skip
    evidence["mlflow_metrics"] = _flat(evidence)
    folder = out / "evaluate" / name
    write_parquet(folder / "cases.parquet", _outcomes(name, pooled, maps, ratio_score, classes))
    figures.draw(evidence, folder)
    write_json(out / "evaluate" / f"{name}.json", evidence)
