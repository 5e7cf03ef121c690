"""What an evaluation carries of its task's shortcuts: the figure that the promotion gate judges, and names for MLflow.

Apart from the stage that measures them, so that evaluating a run does not depend on how pictures are read.
"""

from __future__ import annotations

import math
from typing import Any

#: What a recipe keeps -> the view whose source AUROC is judged. A network that sees the whole picture is judged by the
#: border, which holds nothing of the disease; one that never sees the border, by what it does see.
JUDGED = {
    "all": "border", "border": "border", "lungs": "lungs", "outside_lungs": "lungs_removed",
    "outside_box": "box_removed",
}  # fmt: skip
NOTHING = {"value": None, "lo": None, "hi": None}


def section(found: dict[str, Any], keeps: list[str]) -> dict[str, Any]:
    """The task's shortcuts with ``judged`` (a view) and ``source_auroc`` (its figure; null with a ``reason``).

    Args:
        found: ``out/shortcuts/<task>.json``.
        keeps: of the recipe of each run that answers; with several the worst view is judged.
    """
    if not found["available"]:
        return found
    source = found["source"]
    if not source["defined"]:
        return {**found, "judged": None, "source_auroc": {**NOTHING, "reason": source["reason"]}}
    views = [(source["views"][view], view) for view in dict.fromkeys(JUDGED[keep] for keep in keeps)]
    lost = [(answer, view) for answer, view in views if not answer["defined"]]
    if lost:
        return {**found, "judged": lost[0][1], "source_auroc": {**NOTHING, "reason": lost[0][0]["reason"]}}
    answer, view = max(views, key=lambda pair: pair[0]["macro_auroc"]["value"])
    return {**found, "judged": view, "source_auroc": answer["macro_auroc"]}


def flat(found: dict[str, Any]) -> dict[str, float]:
    """``shortcut/source_auroc`` and the like for MLflow; what is undefined is left out."""
    if not found["available"]:
        return {}
    figures = {"source_auroc": found["source_auroc"], "class_from_source": found["class_from_source"]}
    for part, key in (("source", "source_auroc"), ("task_from", "task_auroc")):
        which = "macro_auroc" if part == "source" else "auroc"
        for view, answer in found[part].get("views", {}).items():
            if answer["defined"]:
                figures[f"{key}_{view}"] = answer[which]
    numbers: dict[str, float] = {}
    for name, figure in figures.items():
        for suffix, end in (("", "value"), ("_lo", "lo"), ("_hi", "hi")):
            value = figure.get(end)
            if value is not None and math.isfinite(value):
                numbers[f"shortcut/{name}{suffix}"] = float(value)
    return numbers
