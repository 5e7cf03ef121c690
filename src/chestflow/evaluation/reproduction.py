"""The papers' figures beside ours: printed value, what it really measures, ours with its interval, and why they differ.

The printed tables and their decoding are data, in paper_figures.yaml; nothing here knows a number of a paper.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FIGURES = Path(__file__).with_name("paper_figures.yaml")
#: The only cuts at which paper 004 gives figures by ratio group.
PAPER_CUTS = [0.005, 0.03]


@cache
def paper_figures() -> dict[str, Any]:
    """The printed tables by method; see the file's comments."""
    tables: dict[str, Any] = yaml.safe_load(FIGURES.read_text())
    return tables


def implied(sensitivity: float, specificity: float, positives: int, negatives: int) -> dict[str, float]:
    """Accuracy, precision and F1 that a sensitivity and a specificity imply at given counts."""
    tp, fp = sensitivity * positives, (1 - specificity) * negatives
    return {
        "implied_acc": (tp + specificity * negatives) / (positives + negatives),
        "implied_precision": tp / (tp + fp) if tp + fp else math.nan,
        "implied_f1": 2 * tp / (tp + fp + positives) if tp + fp + positives else math.nan,
    }


def why_not_comparable(table: dict[str, Any], params: Any, evaluation: dict[str, Any]) -> str:
    """One sentence on what stands between the paper's figure and ours; never empty."""
    sources = evaluation["counts"]["sources"]
    if "phantom" in sources:
        return f"ours is on computed phantoms, the paper's on {table['data']}"
    reason = f"other images: ours {', '.join(sources)}, the paper's {table['data']}"
    if len(evaluation["classes"]) > 2:
        reason += f"; ours has {len(evaluation['classes'])} classes"
    return f"{reason}; profile {params.profile}"


def _matches(match: dict[str, Any], name: str, params: Any) -> bool:
    if name in params.ensembles:
        return bool(match.get("ensemble", False))
    config = params.runs[name].config
    # A key that the config does not hold is not known to agree.
    return not match.get("ensemble") and all(key in config and config[key] == want for key, want in match.items())


def _row(
    about: dict[str, Any], column: str, meaning: dict[str, Any], printed: float, ours: dict | None
) -> dict[str, Any]:
    value = ours["value"] if ours else None
    known = value is not None and not math.isnan(value)
    return {
        **about, "column": column, "means": meaning["means"], "metric": meaning["metric"], "paper_value": printed,
        "ours": ours, "difference": value - printed if known and value is not None else None,
    }  # fmt: skip


def rows(name: str, params: Any, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Every printed figure of the rows that a run or ensemble corresponds to, with ours beside it.

    Args:
        name: of the run or ensemble.
        params: the checked parameters.
        evaluation: the evidence of :mod:`chestflow.evaluation.evaluate` (or as read from its JSON).

    Returns:
        Dicts with ``name, paper, row, set`` (the paper's part of the data), ``group`` (infection ratio, or null),
        ``column`` (as printed), ``means``, ``metric`` (ours; null where nothing measures the same), ``paper_value``,
        ``ours`` (value, lo, hi, …; null without a metric), ``difference`` (ours minus the paper's) and ``reason``, why
        the two are not comparable. Empty for a method or setting that no paper reports.
    """
    table = paper_figures().get(evaluation["method"])
    if table is None:
        return []
    found: list[dict[str, Any]] = []
    metrics = evaluation["metrics"][table["unit"]]
    for label, printed in table["rows"].items():
        if not _matches(printed["match"], name, params):
            continue
        about = {"name": name, "paper": table["paper"], "row": label, "group": None}
        sets = {s: printed[s] for s in ("tv", "test") if s in printed} or {"test": printed}
        for which, values in sets.items():
            values = {k: v for k, v in values.items() if k in table["columns"]}
            if "positives" in table:
                values |= implied(values["sens"], values["spec"], table["positives"], table["negatives"])
            for column, value in values.items():
                meaning = dict(table["columns"][column])
                if column in printed.get("undecoded", ()):
                    meaning |= {"metric": None, "means": "follows no rule that could be found"}
                ours = metrics[meaning["metric"]] if meaning["metric"] else None
                found.append(_row({**about, "set": which}, column, meaning, value, ours))
        found += _groups(about, printed, table, params, evaluation)
    reason = why_not_comparable(table, params, evaluation)
    return [{**row, "reason": reason} for row in found]


def _groups(
    about: dict[str, Any], printed: dict[str, Any], table: dict[str, Any], params: Any, evaluation: dict[str, Any]
) -> list[dict[str, Any]]:
    """Figures by infection ratio, where ours are cut where the paper's are."""
    if list(params.evaluate.ratio_cuts) != PAPER_CUTS:
        return []
    ours = [group for group in evaluation["ratio_groups"] if group["group"] != "unknown"]
    found = []
    for which, columns in printed.get("groups", {}).items():
        for column, values in columns.items():
            meaning = table["columns"][column]
            for value, group in zip(values, ours, strict=True):
                where = {**about, "set": which, "group": group["group"]}
                found.append(_row(where, column, meaning, value, group["metrics"][meaning["metric"]]))
    return found
