"""What MLflow, the model card and the gates read of ``out/evaluate/<name>.json``: its fields are named here alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

#: The section whose answers are calibrated and called at the tuned threshold, as a served model's are.
SERVED = "tuned"


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
    """The scalar figures per image at the operating point that is served, by name: auroc, sensitivity, ece ..."""
    found = evidence.get(SERVED, {}).get("image", {})
    return {name: figure(value) for name, value in found.items() if _is_figure(value)}


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, dict) and "value" in value)


def subgroups(evidence: dict[str, Any]) -> list[Subgroup] | None:
    """The known subgroups with a count and an AUROC; None where evaluate measured none."""
    found = evidence.get("subgroups")
    if found is None:
        return None
    return [
        Subgroup(f"{row['by']}: {row['group']}", int(row["images"]), figure(row[SERVED]["auroc"]))
        for row in found
        if row["group"] != "unknown"
    ]


def shortcut(evidence: dict[str, Any]) -> Figure | None:
    """AUROC of telling the source from the picture's border alone; None while nobody has measured it."""
    found = evidence.get("shortcut", {})
    return figure(found["source_auroc"]) if isinstance(found, dict) and "source_auroc" in found else None


def uniform_alone(evidence: dict[str, Any]) -> Figure | None:
    """AUROC of an ensemble's uniform network, which answers where the infection ratio is unknown; None for a run."""
    members = evidence.get("members")
    return figure(members["uniform"]["auroc"]) if members else None


def mlflow_metrics(evidence: dict[str, Any]) -> dict[str, float]:
    """``test/auroc``, ``test/auroc_lo``, ``test/auroc_hi`` and so on, as evaluate flattened them."""
    return {name: float(value) for name, value in evidence.get("mlflow_metrics", {}).items() if value is not None}


def fold_metrics(evidence: dict[str, Any], fold: int) -> dict[str, float]:
    """The same names for one fold's test images, without intervals; empty where the fold was not evaluated."""
    for row in evidence.get("per_fold", []):
        if row["fold"] == fold:
            sections = (("test", row["metrics"]), ("test_tuned", row[SERVED]))
            return {f"{at}/{k}": float(v) for at, found in sections for k, v in found.items() if v is not None}
    return {}
