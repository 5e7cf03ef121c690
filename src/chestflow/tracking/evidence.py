"""What MLflow, the model card and the gates read of ``out/evaluate/<name>.json``: its fields are named here alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

#: The section whose answers are scaled and called as a served model's are.
SERVED = "served"


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


@dataclass(frozen=True)
class Shortcut:
    """How well the source is told from ``view``, and what the source tells about the class.

    Attributes:
        source_auroc: of telling the source; its ``why`` says why it is undefined.
        view: the part of the picture.
        class_from_source: balanced accuracy of guessing COVID-19 from the source alone.
        one_source: there is no second one to be told from the first.
        confounded: COVID-19 and the source coincide.
        sentence: what a reader must know about the two.
    """

    source_auroc: Figure
    view: str
    class_from_source: Figure
    one_source: bool
    confounded: bool
    sentence: str


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


def shortcut(evidence: dict[str, Any]) -> Shortcut | None:
    """Whether the source can be told without the disease; None while nobody has measured it, or could."""
    found = evidence.get("shortcut", {})
    if not isinstance(found, dict) or "source_auroc" not in found:
        return None
    return Shortcut(
        source_auroc=figure(found["source_auroc"]),
        view=str(found.get("judged") or "border"),
        class_from_source=figure(found.get("class_from_source")),
        one_source=len(found.get("sources", ())) == 1,
        confounded=bool(found.get("confounded", False)),
        sentence=str(found.get("sentence") or ""),
    )


def why_no_shortcut(evidence: dict[str, Any]) -> str:
    """Why :func:`shortcut` is None."""
    found = evidence.get("shortcut", {})
    return str(found.get("reason") or "") if isinstance(found, dict) else ""


def uniform_alone(evidence: dict[str, Any]) -> Figure | None:
    """AUROC of a dual-sampling ensemble's uniform network, which answers where the infection ratio is unknown."""
    members = evidence.get("members")
    return figure(members["uniform"]["auroc"]) if members and "uniform" in members else None


def as_served(evidence: dict[str, Any]) -> tuple[Figure, Figure] | None:
    """AUROC of a dual-sampling ensemble with w from the sources' masks, and from the ratio that a served model finds;
    None where the second was not measured."""
    found = evidence.get("as_served")
    return (figure(found["source"]["auroc"]), figure(found["network"]["auroc"])) if found else None


def mlflow_metrics(evidence: dict[str, Any]) -> dict[str, float]:
    """``test/auroc``, ``test/auroc_lo``, ``test/auroc_hi`` and so on, as evaluate flattened them."""
    return {name: float(value) for name, value in evidence.get("mlflow_metrics", {}).items() if value is not None}


def fold_metrics(evidence: dict[str, Any], fold: int) -> dict[str, float]:
    """The same names for one fold's test images, without intervals; empty where the fold was not evaluated."""
    for row in evidence.get("per_fold", []):
        if row["fold"] == fold:
            sections = (("test", row["metrics"]), ("test_tuned", row["tuned"]), ("test_served", row[SERVED]))
            return {f"{at}/{k}": float(v) for at, found in sections for k, v in found.items() if v is not None}
    return {}
