"""Small plots of what stages before the training leave: the search for tau, a pretraining's loss, pseudo labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestflow.evaluation.figures import ACCENT, INK, OTHER, SOFT, canvas

if TYPE_CHECKING:
    import pandas as pd

SMALL = (4.6, 3.2)  # inches


def tau_curve(found: Mapping[str, Any], path: Path, title: str) -> None:
    """The criterion on the tune role over tau, as PNG; trials that were given up are hollow.

    Args:
        found: of ``out/tune/tau/<run>/<fold>.json``.
        path: of the picture.
        title: above it.
    """
    ended = [point for point in found["curve"] if not point["pruned"]]
    given_up = [point for point in found["curve"] if point["pruned"]]
    with canvas(path, title, size=SMALL) as axes:
        axes.axvline(found["paper"]["tau"], color=OTHER, lw=1, ls="--", label=f"paper's {found['paper']['tau']:.2f}")
        if found["tau"] != found["paper"]["tau"]:
            axes.axvline(found["tau"], color=INK, lw=1, label=f"in use, {found['tau']:.2f}")
        axes.plot([p["tau"] for p in ended], [p["value"] for p in ended], "o-", color=ACCENT, ms=4, lw=1)
        if given_up:
            # an unfinished trial stands where it was after its last epoch
            x, y = [p["tau"] for p in given_up], [p["value"] for p in given_up]
            axes.plot(x, y, "o", color=SOFT, ms=4, mfc="none", label="given up")
        axes.set(xlabel="tau", ylabel=f"{found['criterion']} on the tune role")
        axes.legend(frameon=False, fontsize=8)


def loss_curve(epochs: pd.DataFrame, path: Path, title: str) -> None:
    """A pretraining's loss by epoch, and on a second axis the share of queries that find their own key, as PNG.

    Args:
        epochs: of ``out/pretrain/<name>/history.csv``.
        path: of the picture.
        title: above it.
    """
    at, marker = epochs["epoch"], "." if len(epochs) < 3 else ""
    with canvas(path, title, size=SMALL) as axes:
        axes.plot(at, epochs["train_loss"], color=ACCENT, marker=marker)
        axes.set(xlabel="epoch", ylabel="contrastive loss")
        axes.yaxis.label.set_color(ACCENT)
        other = axes.twinx()
        other.plot(at, epochs["train_found"], color=OTHER, lw=1, ls="--", marker=marker)
        other.set(ylim=(0, 1.02))
        other.set_ylabel("finds its own key", color=OTHER)
        other.spines["top"].set_visible(False)


def rounds(networks: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, title: str) -> None:
    """Dice on held slices after each round of Algorithm 1, a line a network, as PNG.

    Args:
        networks: name -> ``rounds`` of ``out/infection/ct_slice/pseudo.json``.
        path: of the picture.
        title: above it.
    """
    with canvas(path, title, size=SMALL) as axes:
        for (name, records), colour in zip(networks.items(), (ACCENT, OTHER, SOFT), strict=False):
            known = [(row["round"], row["held"]["dice"]) for row in records if row["held"].get("dice") is not None]
            at, value = zip(*known, strict=True) if known else ((), ())
            axes.plot(at, value, "o-", color=colour, ms=4, lw=1, label=name)
        if len(networks) > 1:
            axes.legend(frameon=False, fontsize=8, loc="lower right")
        axes.set(xlabel="round", ylabel="mean Dice of held slices", ylim=(0, 1.02))


def confidence(records: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Pseudo labels' pixels by max(p, 1 - p), first round against last, as PNG; the share is logarithmic."""
    shown = {f"round {row['round']}": row["confidence"] for row in (records[0], records[-1])}
    bins = len(records[0]["confidence"])
    edges = [0.5 + 0.5 * i / bins for i in range(bins + 1)]
    with canvas(path, title, size=SMALL) as axes:
        for (name, counts), colour in zip(shown.items(), (SOFT, ACCENT), strict=False):
            total = max(sum(counts), 1)
            axes.stairs([count / total for count in counts], edges, color=colour, lw=1.5, label=name)
        axes.set(xlabel="confidence, max(p, 1 - p)", ylabel="share of the pixels", yscale="log", xlim=(0.5, 1))
        axes.legend(frameon=False, fontsize=8, loc="upper left")
