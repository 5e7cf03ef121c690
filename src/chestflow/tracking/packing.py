"""Which networks and tuned values make up a model, read from the stages' outs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from chestflow.data.phantom.layout import SETS
from chestflow.files import read_json, read_parquet
from chestflow.serving.bundle import Bundle, Member, averaged, calibrated, weighted
from chestflow.tracking.provenance import infection_images

if TYPE_CHECKING:
    from chestflow.config import Params


def parts_of(params: Params, name: str) -> list[tuple[str, str]]:
    """The runs of a run or ensemble, each with its part in the answer."""
    if name not in params.ensembles:
        return [(name, "single")]
    joined = params.ensembles[name]
    if joined.kind == "mean":
        return [(run, "member") for run in joined.parts]
    return list(zip(joined.parts, ("uniform", "balanced"), strict=True))


def studies(params: Params, name: str, out: Path) -> dict[str, Path]:
    """The tuned values' files of the folds that are served, by a short name."""
    folds = served_folds(params, name, out)
    found = _calibrations("calibration", name, folds, out)
    if name in params.ensembles:
        found |= {f"w-{fold}": out / "tune" / "w" / name / f"{fold}.json" for fold in folds}
    uniform = [run for run, part in parts_of(params, name) if part == "uniform"]
    return found | (_calibrations("uniform", uniform[0], folds, out) if uniform else {})


def _calibrations(what: str, name: str, folds: list[int], out: Path) -> dict[str, Path]:
    return {f"{what}-{fold}": out / "tune" / "calibration" / name / f"{fold}.json" for fold in folds}


def served_folds(params: Params, name: str, out: Path) -> list[int]:
    """All trained folds, or the one that is best on its own tune role (``register.members``)."""
    folds = list(params.folds)
    if params.register_.members == "best" and len(folds) > 1:
        parts = parts_of(params, name)
        return [max(folds, key=lambda fold: _tune_value(parts, fold, out))]
    return folds


def describe(params: Params, name: str, out: Path) -> Bundle:
    """The facts of the model that a run or ensemble makes.

    Raises:
        DataError: a stage's file is missing.
    """
    parts = parts_of(params, name)
    folds = served_folds(params, name, out)
    first = read_json(out / "train" / parts[0][0] / str(folds[0]) / "model.json")
    files = studies(params, name, out)
    point, uniform = (
        [path for name, path in files.items() if name.startswith(what)] for what in ("calibration-", "uniform-")
    )
    weights = [path for what, path in files.items() if what.startswith("w-")]
    mean = bool(weights) and parts[0][1] == "member"
    served = calibrated(point)
    recipes = {run: read_json(out / "train" / run / str(folds[0]) / "model.json")["recipe"] for run, _ in parts}
    marks = (bool(weights) and not mean) or _read_infection(out, [run for run, _ in parts], folds[0])
    images = trained_on(params, parts[0][0], out, infection=marks)
    licences, commercial = _licences(images)
    return Bundle(
        name=name,
        profile=params.profile,
        task=first["task"]["name"],
        modality=first["input"]["modality"],
        classes=tuple(first["input"]["classes"]),
        recipe=first["recipe"],
        members=tuple(Member(run, fold, part) for fold in folds for run, part in parts),
        weighting=weighted(weights) if weights and not mean else None,
        temperature=served.temperature,
        threshold=served.threshold,
        segmentation=_lung_rules(params) if first["input"]["modality"] == "ct_volume" else {},
        phantom=bool(images["source"].isin(SETS).any()),
        licences=licences,
        commercial_use=commercial,
        recipes={run: recipe for run, recipe in recipes.items() if recipe != first["recipe"]},
        shares=averaged(weights) if mean else {},
        uniform=calibrated(uniform) if uniform else None,
        reads_infection=marks,
    )


def _lung_rules(params: Params) -> dict[str, float]:
    """How the lungs of a new volume are found."""
    return {
        "ct_lung_threshold_hu": params.segment.ct_lung_threshold_hu,
        "ct_closing_mm": params.segment.ct_closing_mm,
        "ct_convex_wall": params.segment.ct_convex_wall,
    }


def _read_infection(out: Path, runs: list[str], fold: int) -> bool:
    """Whether one of the runs' networks takes the infection mask as an input."""
    import torch

    from chestflow.files import MODEL
    from chestflow.methods import registry

    for run in runs:
        described = read_json(out / "train" / run / str(fold) / MODEL)
        if described["input"]["modality"] == "cxr":  # no segmenter draws infections on X-rays
            continue
        method = registry.get(described["method"])
        config = registry.configure(method, described["config"])
        with torch.device("meta"):
            network = method.build(config, registry.InputSpec.of(described["input"]))
        if getattr(network, "reads_infection", False):
            return True
    return False


def _tune_value(parts: list[tuple[str, str]], fold: int, out: Path) -> float:
    """How good a fold's networks are on their tune role: their last phase's monitor, higher is better."""
    total = 0.0
    for run, _ in parts:
        best: dict[str, Any] = read_json(out / "train" / run / str(fold) / "model.json")["best"][-1]
        (monitor, value), *_ = [(k, float(v)) for k, v in best.items() if k not in ("phase", "epoch")]
        total += -value if monitor == "loss" else value
    return total


def trained_on(params: Params, run: str, out: Path, *, infection: bool = False) -> pd.DataFrame:
    """Manifest rows of every image that the model learned from: its train and tune roles, and what taught the lung
    segmenter that an X-ray model carries, or with ``infection`` the segmenter of infection that a CT model carries.
    They come from the splits, not from what params.yaml says today."""
    task = params.tasks[params.runs[run].task]
    splits, manifest = read_parquet(out / "splits.parquet"), read_parquet(out / "manifest.parquet")
    mine = splits[(splits["cohort"] == task.cohort) & splits["fold"].isin(params.folds)]
    learned = manifest["image_id"].isin(mine.loc[mine["role"].isin(["train", "tune"]), "image_id"])
    if params.cohorts[task.cohort].modality == "cxr" and params.segment.cxr_lungs.sets:
        outlined = (manifest["modality"] == "cxr") & manifest["lung_mask"].notna()
        learned |= outlined & manifest["source"].isin(params.segment.cxr_lungs.sets)
    if infection:
        taught = infection_images(params, out, params.cohorts[task.cohort].modality)
        learned |= manifest["image_id"].isin(taught["image_id"])
    return manifest[learned]


def _licences(images: pd.DataFrame) -> tuple[tuple[str, ...], str]:
    """The stated licences of the images learned from, and whether all of them allow commercial use."""
    stated = tuple(sorted(str(licence) for licence in images["licence"].dropna().unique()))
    allowed = images["commercial_use"]
    if (allowed == False).fillna(False).any():  # noqa: E712 - null is neither
        return stated, "no"
    return stated, "unstated" if images.empty or allowed.isna().any() or images["licence"].isna().any() else "yes"
