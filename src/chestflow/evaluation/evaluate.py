"""Stage evaluate: the test answers of one run or ensemble, joined to the truth and measured in every way a table needs.

The structure of ``out/evaluate/<name>.json`` is described in docs/evaluation.md.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestflow.evaluation import decision, figures, reproduction, subgroups
from chestflow.evaluation.as_served import as_served
from chestflow.evaluation.cases import load, per_patient, pool
from chestflow.evaluation.evidence import (
    VIEWS,
    analytic,
    counts,
    curve_points,
    external,
    groups_over_folds,
    members,
    outcomes,
    over_folds,
    summaries,
    summary,
)
from chestflow.evaluation.localisation import localise_cases, maps_of, summarise_localisation
from chestflow.evaluation.metrics import confusion
from chestflow.evaluation.shortcut_section import flat as flat_shortcuts
from chestflow.evaluation.shortcut_section import section as shortcut_section
from chestflow.files import read_json, write_json, write_parquet


def _flat(evidence: dict[str, Any]) -> dict[str, float]:
    """Names and numbers for MLflow; undefined ones are left out, since a metric cannot say why it is missing."""
    flat: dict[str, float] = {}

    def put(key: str, value: dict[str, Any]) -> None:
        for suffix, part in (("", "value"), ("_lo", "lo"), ("_hi", "hi")):
            if value.get(part) is not None and math.isfinite(value[part]):
                flat[key + suffix] = float(value[part])

    for section, unit, prefix in (
        ("metrics", "image", "test"), ("metrics", "patient", "test_patient"), ("tuned", "image", "test_tuned"),
        ("served", "image", "test_served"),
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
    if evidence["as_served"]:
        for name in ("auroc", "sensitivity", "specificity", "accuracy"):
            put(f"as_served/{name}", evidence["as_served"]["network"][name])
    put("test/worst_subgroup_auroc", evidence["worst_subgroup"]["auroc"])
    return {**flat, **flat_shortcuts(evidence["shortcut"])}


def evaluate(name: str, params: Any, out: Path) -> None:
    """Measure one run or ensemble on the test role; writes ``out/evaluate/<name>.json`` and its folder.

    Args:
        name: in ``params.runs`` or ``params.ensembles``.
        params: the checked parameters (:class:`chestflow.config.Params`).
        out: the folder of outs: predictions, calibration, manifest, splits, ratio, packs and the task's shortcuts are
            read from it.

    Raises:
        DataError: one of these is missing or they do not fit together.
    """
    task, settings = params.task_of(name), params.evaluate
    classes = list(task.classes)
    cases = load(name, params, out)
    pooled, pooling = pool(cases, classes)
    patients = per_patient(pooled, classes)
    run = params.runs[params.runs_of(name)[0]]
    methods = dict.fromkeys(params.runs[member].method for member in params.runs_of(name))
    attention_run = maps_of(name, params, out)
    keeps = [params.recipes[params.runs[member].recipe].keep for member in params.runs_of(name)]
    maps = localise_cases(cases, attention_run, out / "packs" / run.recipe, out, settings)
    scores = pd.DataFrame({"image_id": cases["image_id"]})
    scores["score"] = subgroups.ratio_scores(cases, task, params.modality_of(name), out, params.folds)
    ratio_score = scores.groupby("image_id")["score"].mean().reindex(pooled["image_id"]).to_numpy(float)
    units = {"image": pooled, "patient": patients}
    y, called = (
        (pooled["target"] == len(classes) - 1).to_numpy(),
        (pooled["called_served"] == len(classes) - 1).to_numpy(),
    )
    measured = {unit: summaries(table, classes, params) for unit, table in units.items()}
    groups = subgroups.subgroups(pooled, classes, settings, params.seed)
    per_fold, across = over_folds(cases, classes)
    by_ratio = subgroups.ratio_table(pooled, ratio_score, classes, settings, params.seed)
    spreads = groups_over_folds(cases, classes, settings)
    evidence: dict[str, Any] = {
        "name": name, "kind": "ensemble" if name in params.ensembles else "run", "method": ", ".join(methods),
        "task": run.task, "classes": classes, "positive": classes[-1], "profile": params.profile,
        "folds": params.folds, "pooling": pooling, "bootstrap": settings.bootstrap,
        "counts": {
            "images": len(pooled), "patients": len(patients), "sources": sorted(pooled["source"].unique()),
            "image": counts(pooled, classes), "patient": counts(patients, classes),
        },
        **{view[0]: {unit: found[view[0]] for unit, found in measured.items()} for view in VIEWS},
        "analytic": {unit: analytic(table, classes, "called") for unit, table in units.items()},
        "per_class": {
            unit: {c: summary(table, classes, VIEWS[0], params, of=i) for i, c in enumerate(classes)}
            for unit, table in units.items()
        },
        "per_fold": per_fold, "across_folds": across,
        "confusion": {
            unit: {
                key: confusion(table["target"].to_numpy(), table[column].to_numpy(), len(classes))[0].astype(int)
                for key, column in (("raw", "called"), ("tuned", "called_tuned"), ("served", "called_served"))
            }
            for unit, table in units.items()
        },
        "prevalence": decision.at_prevalences(
            y, called, pooled["patient_id"].to_numpy(), settings.prevalences,
            resamples=settings.bootstrap, rng=np.random.default_rng(params.seed),
        ),
        "curves": {
            **curve_points(pooled, classes),
            "decision": decision.decision_curve(y, pooled[f"served_{classes[-1]}"].to_numpy(float)),
        },
        "subgroups": groups, "worst_subgroup": subgroups.worst(groups),
        "sites_left_out": subgroups.sites_left_out(pooled, classes, settings, params.seed),
        "ratio_only": subgroups.ratio_only(pooled, ratio_score, classes, settings, params.seed),
        "ratio_groups": [{**row, "across_folds": spreads.get(row["group"])} for row in by_ratio],
        "localisation": summarise_localisation(maps, cases, classes, settings, attention_run, params.seed),
        "members": members(name, params, out, cases, classes),
        "as_served": as_served(name, params, out, cases, classes),
        "external": external(name, params, out, classes, attention_run),
        "shortcut": shortcut_section(read_json(out / "shortcuts" / f"{run.task}.json"), keeps),
    }  # fmt: skip
    evidence["reproduction"] = reproduction.rows(name, params, evidence)
    evidence["mlflow_metrics"] = _flat(evidence)
    folder = out / "evaluate" / name
    write_parquet(folder / "cases.parquet", outcomes(name, pooled, maps, ratio_score, classes))
    figures.draw(evidence, folder)
    write_json(out / "evaluate" / f"{name}.json", evidence)
