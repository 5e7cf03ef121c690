"""The papers' figures beside ours: printed value, what it really measures, ours with its interval, and why they differ.

The printed tables and their decoding are data, one file a paper in ``paper_figures``; nothing here knows a number of a
paper. docs/evaluation.md describes the files.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from chestflow.data.phantom.layout import SETS as PHANTOMS
from chestflow.evaluation.intervals import wilson
from chestflow.evaluation.run_facts import facts

FIGURES = Path(__file__).with_name("paper_figures")
#: The only cuts at which paper 004 gives figures by ratio group.
PAPER_CUTS = [0.005, 0.03]
UNPRINTED = "no printed row has these settings"


@cache
def paper_figures() -> dict[str, Any]:
    """The printed tables by the key of the paper's method; see the files' comments."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FIGURES.glob("*.yaml"))}


def implied(sensitivity: float, specificity: float, positives: int, negatives: int) -> dict[str, float]:
    """Accuracy, precision and both classes' F1 that a sensitivity and a specificity imply at given counts."""
    tp, fp = sensitivity * positives, (1 - specificity) * negatives
    tn, fn = negatives - fp, positives - tp
    return {
        "implied_acc": (tp + specificity * negatives) / (positives + negatives),
        "implied_precision": tp / (tp + fp) if tp + fp else math.nan,
        "implied_f1": 2 * tp / (tp + fp + positives) if tp + fp + positives else math.nan,
        "implied_f1_negative": 2 * tn / (2 * tn + fp + fn) if tn + fp + fn else math.nan,
    }


def why_not_comparable(table: dict[str, Any], params: Any, evaluation: dict[str, Any]) -> str:
    """One sentence on what stands between the paper's figure and ours; never empty."""
    sources = evaluation["counts"]["sources"]
    if not set(PHANTOMS).isdisjoint(sources):
        return f"ours is on computed phantoms, the paper's on {table['data']}"
    reason = f"other images: ours {', '.join(sources)}, the paper's {table['data']}"
    if len(evaluation["classes"]) > 2:
        reason += f"; ours has {len(evaluation['classes'])} classes"
    return f"{reason}; profile {params.profile}"


def matches(match: dict[str, Any] | list[dict[str, Any]] | None, key: str, name: str, params: Any) -> bool:
    """Whether a run or ensemble is what a printed row is about.

    Args:
        match: the row's; None where no entry can be it. ``networks`` names the plain networks whose mean an ensemble
            is, ``ensemble: dual`` the dual-sampling blend, with values of its section (its weights and cuts); else
            ``method`` (the paper's own by default), values of the run's config and
            :func:`~chestflow.evaluation.run_facts.facts`, all of which must agree. Of a list, one must.
        key: of the paper's own method.
        name: of the run or ensemble.
        params: the checked parameters.
    """
    if match is None:
        return False
    if isinstance(match, list):
        return any(matches(one, key, name, params) for one in match)
    if name in params.ensembles:
        members = getattr(params.ensembles[name], "members", None)
        if members is None:
            stated = {k: v for k, v in match.items() if k != "ensemble"}
            joined = params.ensembles[name]
            return match.get("ensemble") == "dual" and all(getattr(joined, k) == v for k, v in stated.items())
        networks = sorted(str(params.runs[member].config.get("network")) for member in members)
        return "networks" in match and networks == sorted(match["networks"])
    if "ensemble" in match or "networks" in match:
        return False
    run = params.runs[name]
    if run.method != match.get("method", key):
        return False
    known = {**run.config, **facts(name, params)}
    # A key that neither holds is not known to agree.
    return all(k in known and _plain(known[k]) == _plain(want) for k, want in match.items() if k != "method")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def input_deviations(run: str, params: Any) -> list[dict[str, Any]]:
    """What of a run's recipe differs from the input that its method's paper tells (``input`` in ``paper_figures``).

    Returns:
        Dicts as :func:`chestflow.methods.registry.deviations` gives them: ``name, value, paper, where``. Empty for a
        method of no paper of ours, and for a value that the paper does not tell.
    """
    settings = params.runs[run]
    recipe = params.recipes[settings.recipe].model_dump(mode="json")
    told = paper_figures().get(settings.method, {}).get("input", {})
    source = told.get("where", "the paper's input")
    return [
        {"name": f"recipe.{key}", "value": recipe[key], "paper": value, "where": f"recipe {settings.recipe}; {source}"}
        for key, value in told.items()
        if key != "where" and recipe[key] != value
    ]


def _comparable_sets(table: dict[str, Any], cohort: str, classes: int) -> dict[str, dict[str, Any]]:
    """The paper's data sets that our figures may stand beside: the cohort's own, else those of as many classes."""
    sets: dict[str, dict[str, Any]] = table.get("sets") or {"test": {}}
    own = {name: about for name, about in sets.items() if about.get("cohort") == cohort}
    return own or {name: about for name, about in sets.items() if about.get("classes", classes) == classes}


def _printed(row: dict[str, Any], which: str, table: dict[str, Any]) -> dict[str, float]:
    values = {k: v for k, v in row.get(which, row).items() if k in table["columns"]}
    if "positives" in table:
        values |= implied(values["sens"], values["spec"], table["positives"], table["negatives"])
    return values


def _interval(value: float, column: str, about: dict[str, Any]) -> dict[str, Any]:
    """The printed figure, with Wilson's interval where it is a share of a known number of images."""
    if "trials" not in about or column not in about.get("of", [column]):
        return {"value": value, "lo": None, "hi": None}
    found = wilson(round(value * about["trials"]), about["trials"])
    return {"value": value, "lo": found.lo, "hi": found.hi}


def _ours(meaning: dict[str, Any], evaluation: dict[str, Any], unit: str) -> dict[str, Any] | None:
    """Our figure; a class's recall with Wilson's interval, as the papers' shares have it."""
    if meaning["metric"] is None:
        return None
    if "of" not in meaning:
        found: dict[str, Any] | None = evaluation["metrics"][unit].get(meaning["metric"])
        return found
    own: dict[str, Any] | None = evaluation["per_class"][unit].get(meaning["of"], {}).get(meaning["metric"])
    count = evaluation["counts"][unit].get(meaning["of"], 0)
    if own is None or own["value"] is None or math.isnan(own["value"]) or not count:
        return own
    return wilson(round(own["value"] * count), count).json()


def _over_folds(metric: str | None, across: dict[str, Any] | None) -> dict[str, Any] | None:
    """Our mean and sample deviation over the folds' networks; None where fewer than two folds have the figure.

    Args:
        metric: ours.
        across: metric -> mean, sd and folds.
    """
    spread = (across or {}).get(metric or "")
    if spread is None or spread["folds"] < 2:
        return None
    return {
        "value": spread["mean"], "lo": None, "hi": None, "sd": spread["sd"], "folds": spread["folds"], "reason": None
    }  # fmt: skip


def _row(
    about: dict[str, Any],
    column: str,
    meaning: dict[str, Any],
    printed: dict[str, Any],
    ours: dict | None,
    sd: float | None,
) -> dict[str, Any]:
    value = ours["value"] if ours else None
    known = value is not None and not math.isnan(value) and printed["value"] is not None
    return {
        **about, "column": column, "means": meaning["means"], "metric": meaning["metric"],
        "paper_value": printed["value"], "paper_lo": printed["lo"], "paper_hi": printed["hi"], "paper_sd": sd,
        "ours": ours, "difference": value - printed["value"] if known else None,
    }  # fmt: skip


def rows(name: str, params: Any, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Every printed figure of the rows, of any paper, that a run or ensemble corresponds to, with ours beside it.

    Args:
        name: of the run or ensemble.
        params: the checked parameters.
        evaluation: the evidence of :mod:`chestflow.evaluation.evaluate` (or as read from its JSON).

    Returns:
        Dicts with ``name, paper, row, set`` (the paper's part of the data), ``group`` (infection ratio, or null),
        ``column`` (as printed), ``means``, ``metric`` (ours; null where nothing measures the same), ``paper_value``,
        ``paper_lo``, ``paper_hi`` (Wilson, null unless the figure is a share of a known number of images),
        ``paper_sd`` (its deviation over folds, where printed), ``ours`` (value, lo, hi, …; null without a metric;
        where the paper prints a deviation, the mean over our folds with ``sd`` and ``folds`` instead of an interval),
        ``difference`` (ours minus the paper's) and ``reason``, why the two are not comparable. A run of a paper's own
        method to which no printed row corresponds stands there without the paper's values, ``row`` saying so. Empty
        for a method that no paper reports.
    """
    found: list[dict[str, Any]] = []
    cohort = params.tasks[evaluation["task"]].cohort
    for key, table in paper_figures().items():
        reason = why_not_comparable(table, params, evaluation)
        before = len(found)
        for label, printed in table["rows"].items():
            if not matches(printed.get("match"), key, name, params):
                continue
            about = {"name": name, "paper": table["paper"], "row": label, "group": None, "reason": reason}
            for which, data in _comparable_sets(table, cohort, len(evaluation["classes"])).items():
                for column, value in _printed(printed, which, table).items():
                    meaning = dict(table["columns"][column])
                    if column in _undecoded(printed, which):
                        meaning |= {"metric": None, "means": "follows no rule that could be found"}
                    sd = printed.get("sd", {}).get(which, {}).get(column)
                    ours = _ours(meaning, evaluation, table["unit"])
                    if sd is not None and ours is not None:
                        # a figure with a deviation is the mean of the folds' networks, each by itself
                        across = evaluation.get("across_folds", {}).get("metrics")
                        ours = _over_folds(meaning["metric"], across) or ours
                    found.append(
                        _row({**about, "set": which}, column, meaning, _interval(value, column, data), ours, sd)
                    )
            found += _groups(about, printed, table, params, evaluation)
        if len(found) == before and name in params.runs and params.runs[name].method == key:
            about = {"name": name, "paper": table["paper"], "row": UNPRINTED, "group": None, "reason": reason}
            found += _alone(about, table, evaluation)
    return found


def _alone(about: dict[str, Any], table: dict[str, Any], evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """What the paper's columns mean, of a run that no printed row is about; nothing of what ours does not measure."""
    nothing = {"value": None, "lo": None, "hi": None}
    measured = {column: _ours(meaning, evaluation, table["unit"]) for column, meaning in table["columns"].items()}
    return [
        _row({**about, "set": None}, column, table["columns"][column], nothing, ours, None)
        for column, ours in measured.items()
        if ours is not None
    ]


def _undecoded(printed: dict[str, Any], which: str) -> list[str]:
    marked = printed.get("undecoded", [])
    return list(marked.get(which, []) if isinstance(marked, dict) else marked)


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
            spread = printed.get("groups_sd", {}).get(which, {}).get(column, [None] * len(values))
            for value, sd, group in zip(values, spread, ours, strict=True):
                where = {**about, "set": which, "group": group["group"]}
                plain = {"value": value, "lo": None, "hi": None}
                pooled = group["metrics"][meaning["metric"]]
                folds = None if sd is None else _over_folds(meaning["metric"], group.get("across_folds"))
                found.append(_row(where, column, meaning, plain, folds or pooled, sd))
    return found


def untrained(params: Any) -> list[dict[str, Any]]:
    """The printed rows that nothing in this profile stands for, of each paper whose method or whose rows are in it.

    Returns:
        Dicts with ``paper, row, figures`` (set -> column -> printed value) and ``reason``.
    """
    names = [*params.runs, *params.ensembles]
    found = []
    for key, table in paper_figures().items():
        stood = {
            label: any(matches(printed.get("match"), key, name, params) for name in names)
            for label, printed in table["rows"].items()
        }
        if not any(stood.values()) and key not in {run.method for run in params.runs.values()}:
            continue
        for label, printed in table["rows"].items():
            if stood[label]:
                continue
            sets = table.get("sets") or {"test": {}}
            found.append({
                "paper": table["paper"], "row": label,
                "figures": {which: _printed(printed, which, table) for which in sets},
                "reason": printed.get("not_trained", "no run of this profile has this configuration"),
            })  # fmt: skip
    return found
