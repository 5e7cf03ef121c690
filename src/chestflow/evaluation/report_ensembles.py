"""The report's tables about an ensemble: its parts beside the whole, and how its weights were chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chestflow.config import Params
from chestflow.evaluation.report_data import Table
from chestflow.files import read_json


def members(evidence: dict[str, Any], shown: dict[str, str]) -> Table | None:
    """Each part alone and their joint answers on the same test images; None for a run.

    Args:
        evidence: of the ensemble.
        shown: figure -> its name in the table.
    """
    found = evidence["members"]
    if not found:
        return None
    table = Table(["answer", *shown.values()], text=["answer"])
    if "runs" in found:
        return _of_mean(found, table, shown)
    table.title = "The ensemble and its parts"
    for key, label in (
        ("uniform", "uniform network alone"), ("balanced", "size-balanced network alone"),
        ("paper", "joined with the stated w"), ("swapped", "joined with the stated w exchanged"),
        ("tuned", "joined with the tuned w"),
    ):  # fmt: skip
        if key in found:
            table.rows.append([label, *(found[key].get(k) for k in shown)])
    used = ", ".join(f"fold {fold}: {which}" for fold, which in found["used"].items())
    table.note = f"In use: {used}. The stated values stay unless the tuned ones are better beyond doubt."
    for which in ("swapped", "tuned"):
        gap = found.get(f"{which}_minus_paper")
        if gap and gap["auroc"]["value"] is not None:
            p = "" if gap["p"] is None else f", p {gap['p']:.3f}"
            table.note += f" AUC with w {which} minus stated {gap['auroc']['value']:+.4f}{p} (DeLong)."
    return table


def _of_mean(found: dict[str, Any], table: Table, shown: dict[str, str]) -> Table:
    table.title = "The ensemble and its members"
    for run in found["names"]:
        table.rows.append([f"{run} alone", *(found["runs"][run].get(k) for k in shown)])
    for key, label in (("given", "mean with the stated weights"), ("tuned", "mean with the tuned weights")):
        if key in found:
            table.rows.append([label, *(found[key].get(k) for k in shown)])
    folds = [
        f"fold {fold}: {found['used'][fold]} ({', '.join(f'{run} {shares[run]:.2f}' for run in found['names'])})"
        for fold, shares in found["weights"].items()
    ]
    table.note = f"In use: {'; '.join(folds)}. The stated weights stay unless the tuned ones are better beyond doubt."
    return table


def as_served(evidence: dict[str, Any], shown: dict[str, str]) -> Table | None:
    """Dual sampling with w from the evaluated masks and from what a served model finds; None where that is unknown.

    Args:
        evidence: of the ensemble.
        shown: figure -> its name in the table.
    """
    found = evidence["as_served"]
    if not found:
        return None
    table = Table(["infection ratio", "unknown", *shown.values()], text=["infection ratio"])
    table.title = "The ensemble as it is served"
    for key, label in (("source", "w from source masks"), ("network", "w from the network, as served")):
        table.rows.append([label, str(found["unknown"][key]), *(found[key].get(k) for k in shown)])
    gap = found["network_minus_source"]
    table.note = (
        f"At the operating point in use, {found['images']} test images, of which {found['other_w']} get another w."
        " Tuning and all other figures of this page take the ratio from the source's masks where it gives any; a served"
        " model has none, and asks its segmenter, here one that did not see the image's group. Where the ratio is"
        " unknown the uniform network answers alone."
    )
    if gap["auroc"]["value"] is not None:
        p = "" if gap["p"] is None else f", p {gap['p']:.3f}"
        table.note += f" AUC as served minus with source masks {gap['auroc']['value']:+.4f}{p} (DeLong)."
    return table


#: Of the files of the stage tune_w: a section, and what the table calls it.
CHOICES = {"paper": "stated", "swapped": "stated, exchanged", "tuned": "tuned"}
FIGURES = ("w_extreme", "w_middle", "cut_low", "cut_high", "log_loss", "auroc", "accuracy")


def weights(name: str, params: Params, out: Path) -> Table | None:
    """w on the tune role of each fold: as stated, with its two values exchanged, and tuned; None unless it is dual
    sampling.

    Paper 004 gives the uniform network its high weight between the cuts, where the rarer kinds of image lie, and argues
    for the opposite in its text.
    """
    if name not in params.ensembles or params.ensembles[name].kind != "dual":
        return None
    heads = ["w", "w outside the cuts", "w between", "low cut", "high cut", "log loss", "AUC", "accuracy", "in use"]
    table = Table(["fold", *heads], text=["fold", "w", "in use"], title="Weights by infection ratio, on the tune role")
    gains = []
    for fold in params.folds:
        found = read_json(out / "tune" / "w" / name / f"{fold}.json")
        for key, label in CHOICES.items():
            about = found[key]
            figures = [about[k] for k in FIGURES]
            table.rows.append([str(fold), label, *figures, "yes" if found["use"] == key else ""])
        gain = found["gain"]
        if gain["value"] is not None:
            gains.append(f"fold {fold}: {gain['value']:+.4f} [{gain['lo']:+.4f}, {gain['hi']:+.4f}]")
    table.note = (
        "The least log loss was searched on the tune role alone. The tuned values are in use where the interval of "
        "their gain in log loss on images left out of each resample lies above 0; exchanged ones are shown, never used"
        f"{'. Gain: ' + '; '.join(gains) if gains else ''}."
    )
    return table
