"""The parts of a run's evidence: figures per image and patient, per fold, of ensemble members, on external sets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestflow.evaluation.calibration import reliability
from chestflow.evaluation.cases import call, columns, load, pool, ratio_group, same_answers
from chestflow.evaluation.comparison import paired_delong
from chestflow.evaluation.intervals import delong, wilson
from chestflow.evaluation.localisation import localise_cases, summarise_localisation
from chestflow.evaluation.metrics import measure, summarise
from chestflow.evaluation.subgroups import SHOWN as GROUP_FIGURES
from chestflow.files import read_json, read_parquet

#: (section, probability columns, call column): raw, at the tuned operating point, and at the one in use
VIEWS = (("metrics", "p", "called"), ("tuned", "calibrated", "called_tuned"), ("served", "served", "called_served"))


def summaries(table: pd.DataFrame, classes: list[str], params: Any) -> dict[str, dict]:
    """Each view's figures; a view whose answers are another one's shares them."""
    found: dict[str, dict] = {}
    for view in VIEWS:
        twin = next((one for one in VIEWS if one[0] in found and same_answers(table, classes, one, view)), None)
        found[view[0]] = summary(table, classes, view, params) if twin is None else found[twin[0]]
    return found


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
        row: dict[str, Any] = {"fold": fold, "images": len(part)}
        row |= {key: float(part[key].iloc[0]) for key in ("threshold", "threshold_served")}
        for section, prefix, called in VIEWS:
            p = part[columns(prefix, classes)].to_numpy(float)
            values = measure(part["target"].to_numpy(), p, part[called].to_numpy())
            row[section] = {name: float(v[0]) for name, v in values.items()}
        rows.append(row)
    across: dict[str, Any] = {}
    for section, _, _ in VIEWS:
        across[section] = {}
        for name in rows[0][section]:
            across[section][name] = _spread([row[section][name] for row in rows])
    return rows, across


def _spread(values: list[float]) -> dict[str, Any]:
    """Mean and sample deviation of what is defined."""
    each = np.array(values, float)
    defined = each[np.isfinite(each)]
    return {
        "mean": float(defined.mean()) if len(defined) else math.nan,
        "sd": float(defined.std(ddof=1)) if len(defined) > 1 else math.nan,
        "folds": len(defined),
        "reason": None if len(defined) > 1 else "fewer than two folds where it is defined",
    }


def groups_over_folds(cases: pd.DataFrame, classes: list[str], settings: Any) -> dict[str, dict[str, Any]]:
    """Each infection-ratio group's raw figures as mean and sample deviation over the folds' networks.

    Args:
        cases: a row for each fold and image.
        classes: of the task.
        settings: ``params.evaluate``.
    """
    called = call(cases, classes)
    called["group"] = called["ratio"].map(lambda r: ratio_group(r, settings.ratio_cuts))
    found = {}
    for group, rows in called.groupby("group"):
        each = [
            measure(part["target"].to_numpy(), part[columns("p", classes)].to_numpy(float), part["called"].to_numpy())
            for _, part in rows.groupby("fold")
        ]
        found[str(group)] = {name: _spread([float(values[name][0]) for values in each]) for name in GROUP_FIGURES}
    return found


def answers_of(run: str, params: Any, out: Path, classes: list[str]) -> np.ndarray:
    """Raw test probabilities of a run, (N, C), in the order of :func:`chestflow.evaluation.cases.load`.

    Read without the run's calibration, which an ensemble's evaluation does not depend on.
    """
    files = [out / "predictions" / run / str(fold) / "test.parquet" for fold in sorted(params.folds)]
    table = pd.concat([read_parquet(file).sort_values("image_id") for file in files])
    return table[columns("p", classes)].to_numpy(float)


def members(name: str, params: Any, out: Path, cases: pd.DataFrame, classes: list[str]) -> dict[str, Any] | None:
    """For an ensemble: its networks alone, the stated weights and the tuned ones on the same test images, raw calls."""
    if name not in params.ensembles:
        return None
    joined = params.ensembles[name]
    if joined.kind == "mean":
        return _mean_members(name, params, out, cases, classes)
    uniform, balanced = (answers_of(part, params, out, classes) for part in (joined.uniform, joined.balanced))
    variants = {"uniform": uniform, "balanced": balanced}
    for which in ("paper", "tuned", *(["swapped"] if "w_swapped" in cases else [])):
        w = cases[f"w_{which}"].to_numpy(float)[:, None]
        variants[which] = w * uniform + (1 - w) * balanced
    tables = {which: _answering(cases, mixed, classes) for which, mixed in variants.items()}
    found: dict[str, Any] = {which: summary(table, classes, VIEWS[0], params) for which, table in tables.items()}
    for which in [w for w in ("tuned", "swapped") if w in tables]:
        found[f"{which}_minus_paper"] = gap(tables[which], tables["paper"], classes)
    # Whether tuned weights replaced the paper's in a fold shows in the answers themselves.
    used = {
        str(fold): "paper" if (part["w"] == part["w_paper"]).all() else "tuned" for fold, part in cases.groupby("fold")
    }
    return {**found, "names": {"uniform": joined.uniform, "balanced": joined.balanced}, "used": used}


def _answering(cases: pd.DataFrame, p: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """The pooled cases with other raw probabilities (N, C)."""
    table = cases.copy()
    table[columns("p", classes)] = p
    return pool(table, classes)[0]


def gap(first: pd.DataFrame, second: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    """AUC of the first minus that of the second, on the same images."""
    y = (first["target"] == len(classes) - 1).to_numpy()
    one, other = (table[f"p_{classes[-1]}"].to_numpy(float) for table in (first, second))
    test = paired_delong(y, one, other, first["patient_id"].to_numpy())
    return {"auroc": test["difference"].json(), "p": test["p"]}


def _mean_members(name: str, params: Any, out: Path, cases: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    """``runs`` (each member's figures; ``names`` has their order), ``given`` and, where it was searched, ``tuned``: the
    joint figures with those weights; ``weights`` and ``used`` by fold."""
    runs = params.runs_of(name)
    alone = {run: answers_of(run, params, out, classes) for run in runs}
    decided = {fold: read_json(out / "predictions" / name / str(fold) / "weights.json") for fold in params.folds}
    tables: dict[str, pd.DataFrame] = {}
    for which in ("given", "tuned"):
        if all(found[which] for found in decided.values()):
            shares = [cases["fold"].map({f: w[which]["weights"][run] for f, w in decided.items()}) for run in runs]
            mixed = sum(s.to_numpy(float)[:, None] * alone[run] for s, run in zip(shares, runs, strict=True))
            tables[which] = _answering(cases, np.asarray(mixed), classes)
    found: dict[str, Any] = {which: summary(table, classes, VIEWS[0], params) for which, table in tables.items()}
    if "tuned" in tables:
        found["tuned_minus_given"] = gap(tables["tuned"], tables["given"], classes)
    found["runs"] = {run: summary(_answering(cases, p, classes), classes, VIEWS[0], params) for run, p in alone.items()}
    found["weights"] = {str(fold): w["used"] for fold, w in decided.items()}
    return {**found, "names": runs, "used": {str(fold): w["use"] for fold, w in decided.items()}}


def external(name: str, params: Any, out: Path, classes: list[str], maps_run: str) -> dict[str, dict[str, Any]] | None:
    """Figures on external sets, localisation included, per set; None where there are none. Folds' networks are
    averaged; a map is looked at for each fold by itself.

    Args:
        maps_run: whose attention maps are looked at, see :func:`chestflow.evaluation.localisation.maps_of`.
    """
    cases = load(name, params, out, "external")
    if cases.empty:
        return None
    pooled, how = pool(cases, classes)
    settings = params.evaluate
    recipe = params.runs[params.runs_of(name)[0]].recipe
    found = {}
    for source, part in pooled.groupby("source"):
        answers = cases[cases["source"] == source]
        maps = localise_cases(answers, maps_run, out / "packs" / recipe, out, settings, "external")
        found[str(source)] = {
            "images": len(part), "patients": int(part["patient_id"].nunique()), "pooling": how,
            **summaries(part, classes, params),
            "localisation": summarise_localisation(maps, answers, classes, settings, maps_run, params.seed),
        }  # fmt: skip
    return found


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
    answers = [c for prefix in ("p", "calibrated", "served") for c in columns(prefix, classes)]
    answers += ["threshold", "threshold_served", "called", "called_tuned", "called_served"]
    table = pooled[[*kept, *answers]].copy()
    table.insert(0, "name", name)
    table["right"] = table["called"] == table["target"]
    table["right_tuned"] = table["called_tuned"] == table["target"]
    table["right_served"] = table["called_served"] == table["target"]
    table["ratio_only"] = ratio_score
    if maps.empty:
        return table
    return table.merge(maps.drop_duplicates("image_id").drop(columns="fold"), on="image_id", how="left")
