"""Small trained models of the real methods on drawn chests, and the stages' outs around them, made once a session."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pandas as pd
import torch

from chestflow.config import Params, parse
from chestflow.data.recipes import apply
from chestflow.files import write_json, write_parquet
from chestflow.imaging.images import Radiograph, Volume
from chestflow.segmentation import places
from chestflow.segmentation.lungs import segment_ct

ROLES = ["train"] * 28 + ["tune"] * 24 + ["test"] * 12
SPACING = (2.5, 1.5, 1.5)


def params(source: str = "phantom", **changes: Any) -> Params:
    """Two X-ray runs' worth of parameters: one of covidnet, two of dual_sampling and their ensemble."""
    values = {
        "profile": "toys",
        "data": {"sets": [source]},
        "cohorts": {"xrays": {"sets": [source], "modality": "cxr"}, "cts": {"sets": [source], "modality": "ct_volume"}},
        "recipes": {
            "small": {"modality": "cxr", "size": [64, 64]},
            "cube": {"modality": "ct_volume", "size": [24, 32, 32], "spacing_mm": [1.25, 0.75, 0.75]},
        },
        "tasks": {
            "covid_vs_rest": {"cohort": "xrays", "classes": {"rest": ["normal"], "covid19": ["covid19"]}},
            "covid_vs_cap": {"cohort": "cts", "classes": {"cap": ["cap"], "covid19": ["covid19"]}},
        },
        "runs": {
            "plain": {
                "method": "covidnet",
                "task": "covid_vs_rest",
                "recipe": "small",
                "config": {"setting": "A", "backbone": "squeezenet1_1", "hidden": 8, "epochs": 2, "batch_size": 14},
            },
            **{
                name: {
                    "method": "dual_sampling",
                    "task": "covid_vs_cap",
                    "recipe": "cube",
                    "config": {"depth": 10, "width": 4, "epochs": 2, "batch_size": 14, "lr": 0.01},
                    "seed": seed,
                }
                for seed, name in enumerate(("even", "sized"))
            },
        },
        "ensembles": {"pair": {"uniform": "even", "balanced": "sized"}},
        "engine": {"device": "cpu", "threads": 1},
    }
    return parse({**values, **changes})


def xray(seed: int, covid: bool, side: int = 96) -> np.ndarray:
    """A drawn chest, uint8: dark lungs in a bright body on black; COVID-19 brightens the lungs' lower ends."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    size = rng.uniform(0.12, 0.16)
    grey = np.where((np.abs(x - 0.5) < 0.42) & (y > 0.05), 170.0, 10.0)
    for centre in (0.3, 0.7):
        lung = ((x - centre) / size) ** 2 + ((y - 0.5) / 0.34) ** 2 < 1
        grey[lung] = 60
        if covid:
            grey[lung & (y > 0.6)] = 120
    return np.clip(grey + rng.normal(0, 6, grey.shape), 0, 255).astype(np.uint8)


def ct(seed: int, covid: bool) -> tuple[np.ndarray, np.ndarray]:
    """A drawn thorax in HU, (24, 48, 48) int16, and its infection: at the back of both lungs, or within one."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 48, 48)), indexing="ij")
    hu = np.where((x / 0.95) ** 2 + (y / 0.75) ** 2 < 1, 40.0, -1000.0)
    infection, size = np.zeros(hu.shape, bool), rng.uniform(0.26, 0.36)
    for side in (-0.42, 0.42):
        lung = ((x - side) / size) ** 2 + (y / 0.5) ** 2 + (z / 0.95) ** 2 < 1
        hu[lung] = -850
        infection |= lung & ((y > 0.25) if covid else ((side > 0) & (np.abs(y) < 0.15)))
    hu[infection] = -550
    return np.clip(hu + rng.normal(0, 20, hu.shape), -1000, 1000).astype(np.int16), infection


def write_ct(path: Path, hu: np.ndarray) -> Path:
    """A volume or mask as NIfTI whose axes the reader turns back to ours."""
    z, y, x = SPACING
    nibabel.save(nibabel.Nifti1Image(hu.transpose(2, 1, 0), np.diag([-x, -y, z, 1.0])), path)
    return path


def write_xray(path: Path, pixels: np.ndarray) -> Path:
    cv2.imwrite(str(path), pixels)
    return path


def write_outs(out: Path, folds: int = 1, source: str = "phantom", licence: str | None = "CC0-1.0") -> None:
    """What the stages before training leave, drawn once a session and copied."""
    shutil.copytree(_drawn(folds, source, licence), out, dirs_exist_ok=True)


@cache
def _drawn(folds: int, source: str, licence: str | None) -> Path:
    out = Path(tempfile.mkdtemp(prefix="chestflow-outs-"))
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    settings = params(source)
    rows, splits = [], []
    for modality, recipe, cohort, other in (
        ("cxr", "small", "xrays", "normal"),
        ("ct_volume", "cube", "cts", "cap"),
    ):
        data, masks, index, ratios = [], [], [], []
        plain = settings.recipes[recipe].model_dump(mode="json")
        for i in range(len(ROLES)):
            covid, image_id = i % 2 == 1, f"{modality}-{i:04d}"
            infected = None
            if modality == "cxr":
                image: Radiograph | Volume = Radiograph(xray(i, covid).astype(np.float32), 8, None, "L", "png")
                lung = None
            else:
                hu, infected = ct(i, covid)
                image = Volume(hu, SPACING)
                lung = (segment_ct(hu, SPACING) | infected).astype(np.uint8)
            packed, bits, _ = apply(image, lung, plain)
            data.append(packed)
            masks.append(np.zeros(packed.shape, np.uint8) if bits is None else bits)
            index.append({"row": i, "image_id": image_id, "has_lung": lung is not None, "has_infection": False})
            ratio = float("nan") if lung is None or infected is None else float(infected.sum() / lung.sum())
            ratios.append({"image_id": image_id, "ratio": ratio})
            rows.append(
                {
                    "image_id": image_id,
                    "patient_id": f"{source}-p{i}",
                    "source": source,
                    "modality": modality,
                    "label": "covid19" if covid else other,
                    "licence": licence,
                    "commercial_use": None if licence is None else not licence.startswith("CC-BY-NC"),
                }
            )
            for fold in range(folds):
                role = ROLES[(i + 12 * fold) % len(ROLES)]
                splits.append(
                    {"cohort": cohort, "fold": fold, "image_id": image_id, "group_id": image_id, "role": role}
                )
        folder = out / "packs" / recipe
        folder.mkdir(parents=True)
        np.save(folder / "data.npy", np.stack(data))
        np.save(folder / "masks.npy", np.stack(masks))
        write_parquet(folder / "index.parquet", pd.DataFrame(index))
        write_json(folder / "recipe.json", plain)
        write_parquet(places.segmented(out, modality) / "ratio.parquet", pd.DataFrame(ratios))
    manifest = pd.DataFrame(rows)
    write_parquet(out / "manifest.parquet", manifest.astype({"commercial_use": "boolean", "licence": "str"}))
    write_parquet(out / "splits.parquet", pd.DataFrame(splits))
    return out


def evaluation(auroc_lo: float = 0.85, **changes: Any) -> dict[str, Any]:
    """An evaluation, as far as MLflow, gates and cards read it, that passes every gate unless changed."""
    figures = {
        "auroc": {"value": 0.95, "lo": auroc_lo, "hi": 0.99},
        "sensitivity": {"value": 0.95, "lo": 0.85, "hi": 0.98},
        "specificity": {"value": 0.9, "lo": 0.8, "hi": 0.97},
        "ece": {"value": 0.05, "lo": 0.02, "hi": 0.1},
        "mcc": {"value": None, "lo": None, "hi": None, "reason": "one class only"},
    }
    groups = [
        {"by": "site", "group": "a", "images": 30, "served": {"auroc": {"value": 0.9, "lo": 0.8, "hi": 0.95}}},
        {"by": "site", "group": "b", "images": 5, "served": {"auroc": {"value": 0.3, "lo": 0.1, "hi": 0.6}}},
        {"by": "age", "group": "unknown", "images": 99, "served": {"auroc": {"value": 0.2}}},
    ]
    return {
        "served": {"image": figures},
        "subgroups": groups,
        "per_fold": [
            {"fold": f, "metrics": {"auroc": 0.9 + f / 100}, "tuned": {}, "served": {"mcc": None}} for f in range(2)
        ],
        "mlflow_metrics": {"test/auroc": 0.95, "test/auroc_lo": auroc_lo, "test/auroc_hi": 0.99},
        **changes,
    }


def write_evidence(out: Path, settings: Params, name: str, **changes: Any) -> None:
    """What tune and evaluate leave for a run or an ensemble."""
    for fold in settings.folds:
        tuned = {"temperature": 1.0 + fold, "threshold": 0.5}
        trials = [{"study": "threshold", "number": i, "objective": 0.5 + 0.1 * i} for i in range(3)]
        write_json(
            out / "tune" / "calibration" / name / f"{fold}.json",
            {**tuned, "default": tuned, "trials": trials, "spread": {}, "exact": {}},
        )
        if name in settings.ensembles:
            values = {"w_extreme": 0.2, "w_middle": 0.8, "cut_low": 0.001, "cut_high": 0.2}
            write_json(out / "tune" / "w" / name / f"{fold}.json", {**values, "used": values})
    write_json(out / "evaluate" / f"{name}.json", evaluation(**changes))
    (out / "evaluate" / name).mkdir(parents=True, exist_ok=True)
    write_xray(out / "evaluate" / name / "roc.png", xray(0, False))


def trained(folds: int = 1) -> Path:
    """A folder whose ``out`` holds trained networks of all runs, without MLflow; copy it before changing it."""
    return _trained(folds)


@cache
def _trained(folds: int) -> Path:
    from chestflow.training.run import train_run

    root = Path(tempfile.mkdtemp(prefix="chestflow-toys-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    settings = params(folds=list(range(folds)))
    write_outs(root / "out", folds)
    threads = torch.get_num_threads()
    for run in settings.runs:
        for fold in settings.folds:
            train_run(settings, run, fold, root / "out", root / ".checkpoints")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    for name in (*settings.runs, *settings.ensembles):
        write_evidence(root / "out", settings, name)
    return root
