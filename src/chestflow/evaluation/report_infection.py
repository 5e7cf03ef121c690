"""The report's part about infection masks: who trained the segmenters, how good they are, what pseudo labels did."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from chestflow.evaluation import stage_figures
from chestflow.evaluation.report_data import Table
from chestflow.files import read_json
from chestflow.segmentation import places

#: Of the evidence: a figure and its name in the tables.
SHOWN = {
    "dice": "Dice", "sensitivity": "sensitivity", "specificity": "specificity", "s_measure": "S-measure",
    "e_measure": "E-measure", "mae": "MAE", "hd95": "HD95",
}  # fmt: skip
MODALITIES = {"ct_slice": "CT slices", "ct_volume": "CT volumes"}
#: Dice of the published segmenters of slices.
PUBLISHED = {"Inf-Net, published": 0.682, "Semi-Inf-Net, published": 0.739}
CAVEAT = (
    "The published figures are of 48 other slices that are not here, and of a backbone that began on ImageNet: they are"
    " no target, and a difference is no judgement."
)
SPLIT = {
    "held_out": "one network; measured are images whose group is for tuning or testing in a cohort of their modality",
    "cross_fit": "two halves trained for each other, since too few groups are left aside; a third network, on all, is"
    " for new files",
}


def _trained(found: dict[str, Any]) -> Table:
    table = Table(["images of", "trained on, images", "patients", "who was measured"])
    table.text = table.wrap = ["images of", "who was measured"]
    for modality, about in found.items():
        seen = about["trained_on"]
        row = [MODALITIES[modality], str(seen["images"]), str(seen["patients"]), SPLIT[about["mode"]]]
        table.rows.append(row)
    return table


def _figures(found: dict[str, Any]) -> Table:
    table = Table(["images of", "set", "infected", "patients", *SHOWN.values()], text=["images of", "set"])
    table.title = "Held images, found against the sources' masks"
    for modality, about in found.items():
        parts = about["by_set"]
        if len(parts) != 1:
            parts = {**parts, "all": about}
        for name, part in parts.items():
            cells = [part["figures"].get(key) for key in SHOWN]
            counts = [str(part["images"]), str(part["patients"])]
            table.rows.append([MODALITIES[modality], name, *counts, *cells])
    if "ct_slice" in found:
        blank: list[Any] = [None] * (len(SHOWN) - 1)
        for name, dice in PUBLISHED.items():
            table.rows.append([MODALITIES["ct_slice"], name, "48", "–", dice, *blank])
    table.note = (
        "Each image first, then the mean of its patient, then over patients with a bootstrap interval. HD95 is in"
        " pixels on slices and in mm in volumes; S- and E-measure are of slices alone."
    )
    if "ct_slice" in found:
        table.note += f" {CAVEAT}"
    return table


def _kinds(found: dict[str, Any]) -> Table | None:
    """The kinds of lesion, where a network tells them apart and a source shows which is which."""
    table = Table(["images of", "kind", "images", "patients", *SHOWN.values()], text=["images of", "kind"])
    table.title = "By kind of lesion"
    for modality, about in found.items():
        for kind, part in about.get("by_kind", {}).items():
            cells = [part["figures"].get(key) for key in SHOWN]
            table.rows.append([MODALITIES[modality], kind, str(part["images"]), str(part["patients"]), *cells])
    table.note = "Each kind by itself, on held images that show it: the other kind counts as background."
    return table if table.rows else None


def _healthy(found: dict[str, Any]) -> Table | None:
    table = Table(["images of", "healthy", "stay empty", "marked share"], text=["images of"], title="Healthy images")
    for modality, about in found.items():
        healthy = about["healthy"]
        if healthy["images"]:
            marked = f"{healthy['marked_share']:.5f}"
            table.rows.append([MODALITIES[modality], str(healthy["images"]), str(healthy["empty"]), marked])
    table.note = "They enter no figure above: one false pixel would make their Dice 0."
    return table if table.rows else None


def _ratio(found: dict[str, Any]) -> Table | None:
    heads = ["images of", "images", "mean absolute error", "bias", "worst", "rank correlation"]
    table = Table(heads, text=["images of"], title="Infection ratio, found against true")
    for modality, about in found.items():
        error = about["ratio_error"]
        if error["images"]:
            cells = [error[key] for key in ("mae", "bias", "worst", "rank")]
            table.rows.append([MODALITIES[modality], str(error["images"]), *cells])
    return table if table.rows else None


def _rounds(pseudo: dict[str, Any]) -> Table:
    heads = ["network", "round", "labelled", "trained on", "Dice of held slices", "left empty", "model"]
    table = Table(heads, text=["network", "model"], title="Pseudo labels, round by round")
    for network, about in pseudo.items():
        for row in about["rounds"]:
            counts = [str(row["labelled"]), str(row["trained_on"])]
            cells = [*counts, row["held"].get("dice"), str(row["empty"]), row["model"][:12]]
            table.rows.append([network, str(row["round"]), *cells])
    table.note = (
        "The network labels slices that no doctor labelled, and trains on with them (Algorithm 1 of paper 003). What"
        " the last round labels is not trained on."
    )
    return table


def drawn(draw: Callable[[Path], None]) -> bytes:
    """The PNG that ``draw`` writes to a path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        return path.read_bytes()


def plots(pseudo: dict[str, Any]) -> list[tuple[bytes, str]]:
    """Pictures of the rounds, with captions; none without rounds.

    The confidences are of the network for new files; the Dice is of every network that has held slices, which that one
    has not where halves were trained for each other.
    """
    records = pseudo.get("final", {}).get("rounds", [])
    if not records:
        return []
    made = [(drawn(lambda p: stage_figures.confidence(records, p, "Pseudo labels' confidence")), "Confidence by pixel")]
    judged = {
        name: about["rounds"]
        for name, about in pseudo.items()
        if any(row["held"].get("dice") is not None for row in about["rounds"])
    }
    if judged:
        made.insert(0, (drawn(lambda p: stage_figures.rounds(judged, p, "Dice by round")), "Dice on held slices"))
    return made


def infection(modalities: Iterable[str], out: Path) -> dict[str, Any] | None:
    """What the page shows of the stages ``infection@modality``; None where they trained nothing.

    Args:
        modalities: that have such a stage.
        out: the stages' outs.

    Returns:
        ``tables``, and ``plots`` as PNG bytes with their captions.

    Raises:
        DataError: the stage has not run.
    """
    said = {name: read_json(places.infection(out, name) / "evidence.json") for name in modalities}
    found = {name: about for name, about in said.items() if about}
    if not found:
        return None
    tables = [_trained(found), _figures(found), _kinds(found), _healthy(found), _ratio(found)]
    pictures: list[tuple[bytes, str]] = []
    path = places.infection(out, "ct_slice") / "pseudo.json"
    if "ct_slice" in found and path.exists():
        pseudo = read_json(path)
        if any(about["rounds"] for about in pseudo.values()):
            tables.append(_rounds(pseudo))
            pictures = plots(pseudo)
    return {"tables": [table for table in tables if table is not None], "plots": pictures}
