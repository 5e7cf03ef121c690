"""The report's part about each run and ensemble, read from ``out/evaluate/``."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import pandas as pd

from chestflow.config import Params
from chestflow.data.packs import Pack
from chestflow.evaluation import report_ensembles
from chestflow.evaluation.embedding_map import embedding_map
from chestflow.evaluation.gallery import gallery
from chestflow.evaluation.localisation import maps_of
from chestflow.evaluation.report_data import Table
from chestflow.evaluation.reproduction import input_deviations
from chestflow.evaluation.run_facts import attention_of
from chestflow.files import read_json, read_parquet
from chestflow.methods import registry

#: Figure -> its name in the tables.
SHOWN = {
    "auroc": "AUC", "pr_auc": "PR AUC", "sensitivity": "sensitivity", "specificity": "specificity",
    "precision": "precision", "npv": "NPV", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy",
    "f1": "F1 of COVID-19", "f1_negative": "F1 of the rest", "macro_f1": "macro F1", "mcc": "MCC",
    "brier": "Brier", "ece": "ECE",
}  # fmt: skip
SUMMARY = ("auroc", "sensitivity", "specificity", "accuracy", "macro_f1", "mcc", "ece")
PLOTS = {
    "roc": "ROC", "pr": "Precision and recall", "reliability": "Reliability", "confusion_raw": "Confusion at 0.5",
    "confusion_tuned": "Confusion at the tuned threshold", "decision": "Decision curve",
    "localisation": "Attention against lesions",
}  # fmt: skip


def picture(content: bytes, caption: str) -> dict[str, str]:
    """A PNG or JPEG as a data address, so that the page needs no second file."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return {"data": f"data:image/{kind};base64," + base64.b64encode(content).decode(), "caption": caption}


def summary(found: dict[str, dict[str, Any]]) -> Table:
    """One line for each run and ensemble."""
    heads = [SHOWN[name] for name in SUMMARY]
    table = Table(["name", "task", "unit", "images", *heads], text=["name", "task", "unit"])
    for name, evidence in found.items():
        for unit in ("image", "patient"):
            number = evidence["counts"]["images" if unit == "image" else "patients"]
            values = evidence["served"][unit]
            table.rows.append([name, evidence["task"], unit, str(number), *(values.get(n) for n in SUMMARY)])
    return table


def _metrics(evidence: dict[str, Any]) -> Table:
    raw = "at 0.5" if len(evidence["classes"]) == 2 else "most probable"
    views = [("metrics", raw), ("tuned", "tuned"), ("served", "in use")]
    columns = [f"{unit}, {how}" for unit in ("image", "patient") for _, how in views]
    table = Table(["figure", *columns], text=["figure"])
    for key, name in SHOWN.items():
        if key in evidence["metrics"]["image"]:
            cells = [evidence[view][unit].get(key) for unit in ("image", "patient") for view, _ in views]
            table.rows.append([name, *cells])
    table.note = (
        "Intervals by a bootstrap over patients. A patient's probability is the mean over its images. In use are the"
        " raw temperature and threshold unless the tuned ones were better on the tune role beyond doubt."
    )
    return table


def _classes(evidence: dict[str, Any]) -> Table | None:
    if len(evidence["classes"]) < 3:
        return None
    keys = [k for k in ("auroc", "sensitivity", "specificity", "precision", "f1") if k in SHOWN]
    table = Table(["class", *(SHOWN[k].replace(" of COVID-19", "") for k in keys)], text=["class"])
    for name, values in evidence["per_class"]["image"].items():
        table.rows.append([name, *(values.get(k) for k in keys)])
    return table


def _groups(evidence: dict[str, Any]) -> Table:
    table = Table(["by", "group", "images", "positive", "AUC", "sensitivity", "specificity"], text=["by", "group"])
    table.title = "Subgroups"
    for entry in evidence["subgroups"]:
        values = entry["served"]
        cells = [values.get(k) for k in ("auroc", "sensitivity", "specificity")]
        table.rows.append([entry["by"], entry["group"], str(entry["images"]), str(entry["positives"]), *cells])
    return table


def _sites(evidence: dict[str, Any]) -> Table | None:
    table = Table(["site", "images", "AUC there", "AUC of the rest"], text=["site"], title="One site at a time")
    for entry in evidence["sites_left_out"]:
        only, rest = entry["only"], entry["without"]
        table.rows.append([entry["site"], str(only["images"]), only["metrics"]["auroc"], rest["metrics"]["auroc"]])
    table.note = "The networks are not retrained: a large gap says that one site carries the result."
    return table if table.rows else None


def _ratio(evidence: dict[str, Any]) -> Table | None:
    if not evidence["ratio_only"]["available"]:
        return None
    table = Table(["infection ratio", "images", "AUC", "sensitivity", "specificity", "AUC of the ratio alone"])
    table.text, table.title = ["infection ratio"], "By infection ratio, beside the ratio alone"
    for row in evidence["ratio_groups"]:
        values = [row["metrics"].get(k) for k in ("auroc", "sensitivity", "specificity")]
        alone = (row["ratio_only"] or {}).get("baseline", {}).get("auroc")
        table.rows.append([row["group"], str(row["images"]), *values, alone])
    alone = evidence["ratio_only"]
    model = [alone["model"].get(k) for k in ("auroc", "sensitivity", "specificity")]
    table.rows.append(["all", str(alone["images"]), *model, alone["baseline"]["auroc"]])
    return table


def _localisation(evidence: dict[str, Any]) -> Table | None:
    """The run's own test images, then those of external sets; outlines first, then boxes where a source draws them."""
    rows: list[tuple[str, dict[str, Any]]] = []
    found = {"": evidence["localisation"]}
    found |= {f"{source}, external: ": part["localisation"] for source, part in (evidence["external"] or {}).items()}
    for where, part in found.items():
        if not part["available"]:
            continue
        rows += [(f"{where}covid19", part["covid19"]), (f"{where}other", part["others"])]
        rows += [(f"{where}ratio {group['group']}", group) for group in part["by_ratio"]]
        if part["boxes"]:
            rows.append((f"{where}in boxes", part["boxes"]))
    heads = {"iou": "IoU", "best_iou": "best IoU of this resolution", "iou_share": "share of it", "pointing":
             "pointing game", "energy_lesion": "energy in lesion", "energy_lung": "energy in lung"}  # fmt: skip
    table = Table(["images of", "images", *heads.values()], text=["images of"], title="Attention against true lesions")
    for label, part in rows:
        if part["images"]:
            table.rows.append([label, str(part["images"]), *(part.get(key) for key in heads)])
    return table if table.rows else None  # no source outlines a lesion here


def _external(evidence: dict[str, Any]) -> Table | None:
    """Sets that no network was trained on."""
    if not evidence["external"]:
        return None
    table = Table(["set", "images", "patients", *(SHOWN[k] for k in SUMMARY)], text=["set"], title="External sets")
    for source, part in evidence["external"].items():
        figures = [part["served"].get(k) for k in SUMMARY]
        table.rows.append([source, str(part["images"]), str(part["patients"]), *figures])
    table.note = "At the operating point in use. Patients that both sets hold were never trained on."
    return table


def _prevalence(evidence: dict[str, Any]) -> Table:
    table = Table(["prevalence", "PPV", "NPV"], title="At other prevalences", text=["prevalence"])
    for row in evidence["prevalence"]:
        table.rows.append([f"{row['prevalence']:.1%}", row["ppv"], row["npv"]])
    return table


def _cases(name: str, out: Path, positive: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """COVID-19 cases answered right, the surest first, and every wrong answer, the worst first, with captions."""
    cases = read_parquet(out / "evaluate" / name / "cases.parquet")
    cases["p"] = cases[f"p_{positive}"]
    wrong, truth = cases["called_served"] != cases["target"], cases["target"] == cases["target"].max()

    def caption(row: Any) -> str:
        ratio = "" if math.isnan(row.ratio) else f", infection ratio {row.ratio:.3f}"
        overlap = "" if math.isnan(getattr(row, "iou", math.nan)) else f", IoU {row.iou:.2f}"
        return f"{row.image_id}: {row.label}, p(covid19) {row.p:.2f}{ratio}{overlap}"

    cases["caption"] = [caption(row) for row in cases.itertuples()]
    right = cases[~wrong & truth].sort_values("p", ascending=False)
    missed = cases[wrong].assign(off=(cases["p"] - truth).abs()).sort_values("off", ascending=False)
    return right, missed


def _deviations(name: str, params: Params) -> Table:
    table = Table(["run", "setting", "here", "paper", "why"], text=["run", "setting", "here", "paper"], wrap=["why"])
    for run in params.runs_of(name):
        settings = params.runs[run]
        config = registry.deviations(registry.get(settings.method), settings.config)
        for row in [*config, *input_deviations(run, params)]:
            table.rows.append([run, row["name"], str(row["value"]), str(row["paper"]), row["where"]])
    return table


def _cited(name: str, params: Params) -> str:
    """The methods behind a run or an ensemble."""
    methods = dict.fromkeys(params.runs[run].method for run in params.runs_of(name))
    cited = " ".join(registry.get(method).citation for method in methods)
    joined = params.ensembles.get(name)
    return cited if joined is None or joined.kind == "dual" else f"Mean of {', '.join(joined.parts)}. {cited}"


def _whose(shown: str, name: str, params: Params) -> str:
    """Whose the maps are where they are not simply the run's own; empty where they are."""
    if shown in params.runs:
        of = "" if shown == name else f"Maps are those of {shown}."
        kind = attention_of(shown, params)
        return f"{of} The heat is {kind}.".strip() if kind else of
    return "Maps are the mean of its members'."


def about(name: str, params: Params, out: Path) -> dict[str, Any]:
    """Everything that the page shows of one run or ensemble."""
    evidence = read_json(out / "evaluate" / f"{name}.json")
    parts, shown_run = params.runs_of(name), maps_of(name, params, out)
    pack = Pack.open(out / "packs" / params.runs[parts[0]].recipe)
    folder = out / "evaluate" / name
    plots = [picture((folder / f"{k}.png").read_bytes(), t) for k, t in PLOTS.items() if (folder / f"{k}.png").exists()]
    right, wrong = _cases(name, out, evidence["positive"])
    shown = [gallery(cases, shown_run, pack, out) for cases in (right, wrong)]
    parted = report_ensembles.members(evidence, {key: SHOWN[key] for key in SUMMARY})
    tables = [parted, report_ensembles.weights(name, params, out)]
    tables += [report_ensembles.as_served(evidence, {key: SHOWN[key] for key in SUMMARY})]
    tables += [f(evidence) for f in (_external, _localisation, _ratio, _groups, _sites, _prevalence)]
    counts, points = evidence["counts"], embedding_map(name, params, out)
    return {
        "name": name,
        "about": (
            f"{_cited(name, params)} Task {evidence['task']}: {', '.join(evidence['classes'])}. "
            f"{counts['images']} test images of {counts['patients']} patients, {evidence['pooling'].replace('_', ' ')}."
        ),
        "plots": plots,
        "metrics": _metrics(evidence),
        "classes": _classes(evidence),
        "tables": [table for table in tables if table is not None],
        "right": [picture(s.jpeg, s.caption) for s in shown[0]],
        "wrong": [picture(s.jpeg, s.caption) for s in shown[1]],
        "points": None if points is None else picture(points.png, points.caption),
        "attention_note": _whose(shown_run, name, params),
        "deviations": _deviations(name, params),
    }
