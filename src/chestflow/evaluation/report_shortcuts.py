"""The report's part about shortcuts: what can be told without looking at the lungs, once a task."""

from __future__ import annotations

from typing import Any

from chestflow.evaluation.report_data import Table

#: View -> its name on the page, from the whole to the controls.
SEEN = {
    "image": "whole picture",
    "lungs": "lungs only",
    "lungs_removed": "lungs removed",
    "box_removed": "box around the lungs removed",
    "border": "border only",
    "lung_shape": "control: outline of the lungs alone",
    "lung_box": "control: box around the lungs alone",
}


def _cell(part: dict[str, Any], view: str, figure: str) -> Any:
    """A figure, or null with the reason why there is none."""
    if not part["defined"]:
        return {"value": None, "reason": part["reason"]}
    answer = part["views"].get(view)
    if answer is None:
        return None
    return answer[figure] if answer["defined"] else {"value": None, "reason": answer["reason"]}


def _views(found: dict[str, Any]) -> Table:
    source, task = found["source"], found["task_from"]
    several = len(task["among"]) > 2
    heads = ["seen", "images", "source, AUC", "source, balanced accuracy", "COVID-19, AUC"]
    table = Table([*heads, "classes, mean AUC"] if several else heads, text=["seen"])
    table.title = "What tells the source, and the class"
    for view, name in SEEN.items():
        cells = [_cell(source, view, "macro_auroc"), _cell(source, view, "balanced_accuracy")]
        cells += [_cell(task, view, key) for key in (["auroc", "macro_auroc"] if several else ["auroc"])]
        table.rows.append([name, str(task["views"][view]["images"]), *cells])
    chance = (
        f"; the source's balanced accuracy {source['chance']['balanced_accuracy']:.2f}" if source["defined"] else ""
    )
    table.note = f"By chance an AUC is 0.50{chance}. {found['probe'][0].upper()}{found['probe'][1:]}."
    return table


def _within(found: dict[str, Any]) -> Table | None:
    table = Table(["images of", "sources", *(SEEN[v] for v in ("image", "box_removed", "border"))])
    table.text, table.title = ["images of", "sources"], "The source among images of one label (AUC)"
    for label, part in found["source_within_label"].items():
        if part["defined"]:
            cells = [_cell(part, view, "macro_auroc") for view in ("image", "box_removed", "border")]
            table.rows.append([label, ", ".join(part["among"]), *cells])
    table.note = "Here no difference between the classes can help: what is left is the source itself."
    return table if table.rows else None


def _sources(found: dict[str, Any]) -> Table:
    classes = list(found["sources"][0]["classes"])
    table = Table(["source", "images", "groups", *classes], text=["source"])
    for line in found["sources"]:
        counts = [str(line["classes"][name]) for name in classes]
        table.rows.append([line["source"], str(line["images"]), str(line["groups"]), *counts])
    left_out = ", ".join(found["sources_left_out"])
    table.note = f"Too few groups to be told apart: {left_out}." if left_out else ""
    return table


def shortcuts(evaluations: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the page shows of each task that was evaluated.

    Args:
        evaluations: run or ensemble -> its evaluation.

    Returns:
        Dicts with ``task``, ``confounded``, ``sentence`` and ``tables``; a task that was not measured has no tables,
        and the reason as its sentence.
    """
    found = {evidence["task"]: evidence["shortcut"] for evidence in evaluations.values()}
    shown = []
    for task, part in found.items():
        if not part["available"]:
            shown.append({"task": task, "confounded": False, "sentence": f"{part['reason']}.", "tables": []})
            continue
        tables = [table for table in (_sources(part), _views(part), _within(part)) if table is not None]
        sentence = part["sentence"]
        if part["without_lungs"]:
            sentence += f" {part['without_lungs']} images have no lung mask and count only where none is needed."
        if part["images"] < part["cohort_images"]:
            sentence += (
                f" Measured on {part['images']} of {part['cohort_images']} images, whole groups drawn at random."
            )
        shown.append({"task": task, "confounded": part["confounded"], "sentence": sentence, "tables": tables})
    return shown
