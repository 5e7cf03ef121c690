"""What MLflow, the model card and the gates read of ``out/evaluate/<name>.json``: its fields are named here alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A value with its 95% interval; NaN where it is undefined, with the reason in ``why``."""

    value: float = math.nan
    lo: float = math.nan
    hi: float = math.nan
    why: str = ""


@dataclass(frozen=True)
class Subgroup:
    """AUROC of a part of the test images."""

    name: str
    images: int
    auroc: Figure


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def figure(value: Any) -> Figure:
    """A figure from JSON: a mapping with value, lo and hi, a bare number, or nothing."""
    if isinstance(value, dict):
        why = str(value.get("reason") or "")
        return Figure(_number(value.get("value")), _number(value.get("lo")), _number(value.get("hi")), why)
    return Figure(_number(value))


def figures(evidence: dict[str, Any]) -> dict[str, Figure]:
    """The scalar figures per image, by name: auroc, sensitivity, ece and the others that evaluate wrote."""
    found = evidence.get("metrics", {}).get("image", {})
    return {name: figure(value) for name, value in found.items() if _is_figure(value)}


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, dict) and "value" in value)


def subgroups(evidence: dict[str, Any]) -> list[Subgroup] | None:
    """The subgroups with a count and an AUROC; None where evaluate measured none."""
    found = evidence.get("subgroups")
    if found is None:
        return None
    rows = found if isinstance(found, list) else [row for part in found.values() for row in part]
    return [
        Subgroup(
            ": ".join(str(row[key]) for key in ("by", "group") if row.get(key) is not None),
            int(row.get("n") or row.get("images") or 0),
            figure(row.get("auroc")),
        )
        for row in rows
        if isinstance(row, dict)
    ]


def shortcut(evidence: dict[str, Any]) -> Figure | None:
    """AUROC of telling the source from the picture's border alone; None while nobody has measured it."""
    found = evidence.get("shortcut", {})
    return figure(found["source_auroc"]) if isinstance(found, dict) and "source_auroc" in found else None


def fold_figures(evidence: dict[str, Any], fold: int) -> dict[str, Figure]:
    """The figures of one fold's test images; empty where evaluate did not keep them apart."""
    found = evidence.get("folds", {})
    if isinstance(found, list):
        found = {str(row.get("fold")): row for row in found if isinstance(row, dict)}
    mine = found.get(str(fold), {})
    mine = mine.get("metrics", mine)
    mine = mine.get("image", mine) if isinstance(mine, dict) else {}
    return {name: figure(value) for name, value in mine.items() if _is_figure(value) and name != "fold"}


def mlflow_metrics(found: dict[str, Figure]) -> dict[str, float]:
    """``test/auroc``, ``test/auroc_lo``, ``test/auroc_hi`` and so on; undefined ones are left out."""
    values = {}
    for name, one in found.items():
        for ending, value in (("", one.value), ("_lo", one.lo), ("_hi", one.hi)):
            if math.isfinite(value):
                values[f"test/{name}{ending}"] = value
    return values
