"""What a run takes over from other stages, as tags, parameters and lines of a model card: whose weights, which tau.

Fingerprints are the first 16 digits of the sha256 of a weights file, so that a tag says which weights it were.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestflow.files import WEIGHTS, read_json, sha256_file
from chestflow.segmentation import places
from chestflow.training import uses

if TYPE_CHECKING:
    from chestflow.config import Params

#: Names in MLflow and on cards.
GLOBAL, PRETRAINED, TAU = "uses.global", "uses.weights", "uses.tau"
DIGITS = 16


def names(params: Params, run: str) -> dict[str, str]:
    """What params.yaml says that a run takes over: ``uses.global`` and ``uses.weights``."""
    return {f"uses.{role}": name for role, name in params.runs[run].uses.items()}


def tags(params: Params, run: str, fold: int, out: Path) -> dict[str, str]:
    """The names with the fingerprints of their weights, and the tau in use where a stage tuned it.

    A file that is gone (outs of a clone that were not pulled) is ``unknown``.
    """
    found = names(params, run)
    if GLOBAL in found:
        found[f"{GLOBAL}.sha256"] = fingerprint(out / "train" / found[GLOBAL] / str(fold) / WEIGHTS)
    if PRETRAINED in found:
        found[f"{PRETRAINED}.sha256"] = fingerprint(out / "pretrain" / found[PRETRAINED] / WEIGHTS)
    if uses.tau_is_tuned(params, run):
        path = uses.tau_file(run, fold, out)
        found[TAU] = f"{read_json(path)['tau']:.4f}" if path.exists() else "unknown"
    return found


def fingerprint(path: Path) -> str:
    """The short hash of a file; ``unknown`` where it is gone."""
    return sha256_file(path)[:DIGITS] if path.exists() else "unknown"


def infection_evidence(out: Path, modality: str) -> dict[str, Any]:
    """The figures of the segmenter of infection for a modality; empty where there is none."""
    path = places.infection(out, modality) / "evidence.json"
    return dict(read_json(path)) if path.exists() else {}


def kind_figures(about: dict[str, Any]) -> dict[str, Any]:
    """Dice by kind of lesion, of :func:`infection_evidence`: ``ground_glass/dice`` with ``_lo`` and ``_hi``."""
    return {
        f"{kind.replace(' ', '_')}/dice{end}": part["figures"]["dice"][at]
        for kind, part in about.get("by_kind", {}).items()
        for end, at in (("", "value"), ("_lo", "lo"), ("_hi", "hi"))
        if "dice" in part["figures"]
    }


def card_lines(params: Params, runs: list[str], folds: list[int], out: Path) -> dict[str, str]:
    """What a model's runs take over, as rows of its card: title -> text."""
    rows: dict[str, str] = {}
    for run in runs:
        for role, name in names(params, run).items():
            what = "global branch" if role == GLOBAL else "start of the backbones"
            found = ", ".join(dict.fromkeys(tags(params, run, fold, out)[f"{role}.sha256"] for fold in folds))
            kind = f"run {name}" if role == GLOBAL else _pretraining(name, out)
            rows[f"{what} of {run}"] = f"{kind}, weights {found}"
        if uses.tau_is_tuned(params, run):
            rows[f"tau of {run}"] = "; ".join(_tau(uses.tau_evidence(run, fold, out), fold) for fold in folds)
    return rows


def infection_row(out: Path, modality: str) -> str:
    """Who marks the infection where no mask is given, with its Dice; empty without a segmenter."""
    found = infection_evidence(out, modality)
    if not found:
        return ""
    weights = fingerprint(places.infection(out, modality) / f"{modality}.safetensors")
    dice = found["figures"].get("dice")
    if dice is None or dice["value"] is None:
        measured = "not measured on infected images"
    else:
        interval = "" if dice["lo"] is None else f" ({dice['lo']:.3f} to {dice['hi']:.3f})"
        measured = f"Dice {dice['value']:.3f}{interval} on {found['images']} images that it did not see"
    return f"network trained on {found['trained_on']['images']} images, weights {weights}; {measured}"


def _pretraining(name: str, out: Path) -> str:
    path = out / "pretrain" / name / "pretrain.json"
    if not path.exists():
        return f"pretraining {name}"
    about = read_json(path)
    return f"pretraining {name} without labels on {about['images']} images of cohort {about['settings']['cohort']}"


def _tau(path: Path, fold: int) -> str:
    if not path.exists():
        return f"fold {fold}: unknown"
    found = read_json(path)
    said = "tuned" if found["use"] == "tuned" else f"the paper's; {found['tuned']['tau']:.2f} was tuned"
    return f"fold {fold}: {found['tau']:.2f} ({said})"
