"""A model version's card: what it is, what it was trained on, how good it is, and when it refuses; Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from chestflow.evaluation.calibration import OperatingPoint
from chestflow.serving.abstention import REASONS
from chestflow.serving.bundle import Bundle
from chestflow.tracking import evidence as read

SHOWN = {
    "auroc": "AUROC",
    "pr_auc": "area under precision-recall",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mcc": "Matthews correlation",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
}


def _interval(found: read.Figure) -> str:
    if not math.isfinite(found.value):
        return f"undefined{': ' + found.why if found.why else ''}"
    known = math.isfinite(found.lo) and math.isfinite(found.hi)
    return f"{found.value:.3f}" + (f" ({found.lo:.3f} to {found.hi:.3f})" if known else "")


def _recipes(bundle: Bundle) -> list[str]:
    """The distinct recipes of a model's networks."""
    found = {r["name"]: r for r in (bundle.recipe, *bundle.recipes.values())}
    return [f"recipe {name}, {' x '.join(map(str, recipe['size']))}" for name, recipe in found.items()]


def _point(point: OperatingPoint) -> str:
    cut = "the most probable class" if point.threshold is None else f"p(covid19) at least {point.threshold:.4f}"
    return f"{cut}, temperature {point.temperature:.4f}"


def card(
    bundle: Bundle,
    found: dict[str, Any],
    refusals: dict[str, Any],
    tags: dict[str, str],
    uses: Mapping[str, str] | None = None,
) -> str:
    """The card's text.

    Args:
        bundle: the version's facts.
        found: its evaluation.
        refusals: from :func:`chestflow.serving.abstention.false_abstention`.
        tags: the version's tags: run_ids, data_md5, git_commit.
        uses: what it takes over from other stages, title -> text, from :mod:`chestflow.tracking.taken`.
    """
    folds = sorted({member.fold for member in bundle.members})
    runs = sorted({member.run for member in bundle.members})
    estimate = "one test fold" if len(folds) == 1 else f"cross-validated over {len(folds)} folds, not of the ensemble"
    lines = [f"# {bundle.name}", ""]
    if bundle.notice:
        lines += [f"**{bundle.notice}.** Trained on synthetic images; its figures say nothing about people.", ""]
    lines += [
        "Not a medical device.",
        "",
        "| | |",
        "|---|---|",
        f"| task | {bundle.task}: {', '.join(bundle.classes)} (positive: {bundle.classes[-1]}) |",
        f"| input | {bundle.modality}, {'; '.join(_recipes(bundle))} |",
        f"| networks | {len(bundle.members)}: {', '.join(runs)}; folds {', '.join(map(str, folds))} |",
        f"| profile | {bundle.profile} |",
        f"| operating point | {_point(bundle.point)} |",
        f"| data | {tags.get('data_md5', 'unknown')} |",
        f"| code | {tags.get('git_commit', 'unknown')} |",
        f"| MLflow runs | {tags.get('run_ids', 'unknown')} |",
        f"| licences | {'; '.join(bundle.licences) or 'unstated'} |",
        f"| commercial use of the data | {bundle.commercial_use} |",
    ]
    if bundle.weighting is not None:
        w = bundle.weighting
        lines.append(
            f"| weight of the uniform network | {w.w_extreme:.3f} below ratio {w.cut_low:.4f} and above "
            f"{w.cut_high:.4f}, else {w.w_middle:.3f}; 1 where the ratio is unknown |"
        )
    if bundle.uniform is not None:
        lines.append(f"| operating point where the ratio is unknown | {_point(bundle.uniform)} |")
    if bundle.shares:
        shares = ", ".join(f"{run} {share:.3f}" for run, share in bundle.shares.items())
        lines.append(f"| weights of the mean | {shares} |")
    lines += [f"| {title} | {text} |" for title, text in (uses or {}).items()]
    lines += ["", f"## Test figures ({estimate})", "", "| figure | value (95% interval) |", "|---|---|"]
    figures = read.figures(found)
    lines += [f"| {title} | {_interval(figures[name])} |" for name, title in SHOWN.items() if name in figures]
    alone = read.uniform_alone(found)
    if alone is not None:
        lines += [
            "",
            f"Where the infection ratio is unknown the uniform network answers alone: AUROC {_interval(alone)}.",
        ]
    both = read.as_served(found)
    if both is not None:
        lines += [
            "",
            f"These figures take w from the sources' masks: AUROC {_interval(both[0])}. As served, with w from the "
            f"infection ratio that a network finds by itself: AUROC {_interval(both[1])}.",
        ]
    groups = read.subgroups(found) or []
    if groups:
        lines += ["", "| subgroup | images | AUROC |", "|---|---|---|"]
        lines += [f"| {group.name} | {group.images} | {_interval(group.auroc)} |" for group in groups]
    lines += ["", "## When it does not answer", ""]
    lines += [f"- `{name}`: {meaning}" for name, meaning in REASONS.items()]
    measured = read.figure({"value": refusals.get("rate"), "lo": refusals.get("lo"), "hi": refusals.get("hi")})
    count = f"{refusals.get('abstained', 0)} of {refusals.get('images', 0)}"
    lines += ["", f"False abstentions on its own test images: {count}, rate {_interval(measured)}.", ""]
    return "\n".join(lines)
