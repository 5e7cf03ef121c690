"""Which networks and tuned values make up a model, read from the stages' outs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestflow.files import read_json, read_parquet
from chestflow.serving.bundle import Bundle, Member, calibrated, weighted
from chestflow.tracking import provenance

if TYPE_CHECKING:
    from chestflow.config import Params


def parts_of(params: Params, name: str) -> list[tuple[str, str]]:
    """The runs of a run or ensemble, each with its part in the answer."""
    if name in params.ensembles:
        joined = params.ensembles[name]
        return [(joined.uniform, "uniform"), (joined.balanced, "balanced")]
    return [(name, "single")]


def studies(params: Params, name: str, out: Path) -> dict[str, Path]:
    """The tuned values' files, by a short name."""
    found = {f"calibration-{fold}": out / "tune" / "calibration" / name / f"{fold}.json" for fold in params.folds}
    if name in params.ensembles:
        found |= {f"w-{fold}": out / "tune" / "w" / name / f"{fold}.json" for fold in params.folds}
    return found


def describe(params: Params, name: str, out: Path) -> Bundle:
    """The facts of the model that a run or ensemble makes.

    Raises:
        DataError: a stage's file is missing.
    """
    parts = parts_of(params, name)
    folds = list(params.folds)
    if params.register_.members == "best" and len(folds) > 1:
        folds = [max(folds, key=lambda fold: _tune_value(parts, fold, out))]
    first = read_json(out / "train" / parts[0][0] / str(folds[0]) / "model.json")
    files = studies(params, name, out)
    temperature, threshold = calibrated([path for what, path in files.items() if what.startswith("calibration-")])
    weights = [path for what, path in files.items() if what.startswith("w-")]
    licences, commercial = _licences(params, parts[0][0], out)
    return Bundle(
        name=name,
        profile=params.profile,
        task=first["task"]["name"],
        modality=first["input"]["modality"],
        classes=tuple(first["input"]["classes"]),
        recipe=first["recipe"],
        members=tuple(Member(run, fold, part) for fold in folds for run, part in parts),
        weighting=weighted(weights) if weights else None,
        temperature=temperature,
        threshold=threshold,
        segmentation={
            "ct_lung_threshold_hu": params.segment.ct_lung_threshold_hu,
            "ct_closing_mm": params.segment.ct_closing_mm,
        },
        phantom=provenance.is_phantom(params, parts[0][0]),
        licences=licences,
        commercial_use=commercial,
    )


def _tune_value(parts: list[tuple[str, str]], fold: int, out: Path) -> float:
    """How good a fold's networks are on their tune role: their last phase's monitor, higher is better."""
    total = 0.0
    for run, _ in parts:
        best: dict[str, Any] = read_json(out / "train" / run / str(fold) / "model.json")["best"][-1]
        (monitor, value), *_ = [(k, float(v)) for k, v in best.items() if k not in ("phase", "epoch")]
        total += -value if monitor == "loss" else value
    return total


def _licences(params: Params, run: str, out: Path) -> tuple[tuple[str, ...], str]:
    """The stated licences of the images trained on, and whether all of them allow commercial use."""
    cohort = params.cohorts[params.tasks[params.runs[run].task].cohort]
    manifest = read_parquet(out / "manifest.parquet")
    mine = manifest[manifest["source"].isin(cohort.sets) & (manifest["modality"] == cohort.modality)]
    stated = tuple(sorted(str(licence) for licence in mine["licence"].dropna().unique()))
    allowed = mine["commercial_use"]
    if (allowed == False).fillna(False).any():  # noqa: E712 - null is neither
        return stated, "no"
    return stated, "unstated" if mine.empty or allowed.isna().any() or mine["licence"].isna().any() else "yes"
