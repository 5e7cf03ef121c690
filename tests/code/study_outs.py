"""A small made-up ``out/`` folder: a volume task with two runs, their ensemble, and everything that evaluate reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from chestflow.config import Params, parse
from chestflow.data.manifest import conform
from chestflow.evaluation.calibration import probabilities
from chestflow.evaluation.shortcuts import unmeasured
from chestflow.files import write_json, write_parquet
from chestflow.segmentation import places

SHAPE, CELLS = (8, 16, 16), (4, 4, 4)
RECIPE = {"modality": "ct_volume", "size": list(SHAPE), "spacing_mm": [1.0, 1.0, 1.0]}


def params(folds: int = 2, **changes: object) -> Params:
    """Two dual-sampling runs and their ensemble on one source with two sites."""
    values: dict = {
        "profile": "tiny",
        "folds": list(range(folds)),
        "data": {"sets": ["phantom"]},
        "cohorts": {"ct": {"sets": ["phantom"], "modality": "ct_volume"}},
        "recipes": {"small": RECIPE},
        "tasks": {"covid_vs_cap": {"cohort": "ct", "classes": {"cap": ["cap"], "covid19": ["covid19"]}}},
        "runs": {
            name: {
                "method": "dual_sampling", "task": "covid_vs_cap", "recipe": "small",
                "config": {"sampling": sampling, "attention": True},
            }
            for name, sampling in (("ds_u", "uniform"), ("ds_b", "size_balanced"))
        },
        "ensembles": {"ds": {"uniform": "ds_u", "balanced": "ds_b"}},
        "tune": {"trials": 12, "bootstrap": 40},
        "evaluate": {"bootstrap": 60, "min_group": 10},
        **changes,
    }  # fmt: skip
    return parse(values)


def write(out: Path, *, patients: int = 60, folds: int = 2, signal: float = 1.5, seed: int = 0) -> None:
    """Manifest, splits, ratios, a pack with lesions, predictions and attention of both runs; two images a patient."""
    rng = np.random.default_rng(seed)
    n = patients * 2
    ids = [f"phantom-{i:04d}" for i in range(n)]
    patient = np.repeat([f"phantom-p{i:03d}" for i in range(patients)], 2)
    y = np.repeat(rng.permutation(patients) % 2, 2)
    ratio = np.where(rng.random(n) < 0.1, np.nan, 10 ** rng.normal(-2 + 0.4 * y, 0.7))
    frame = {
        "image_id": ids, "source": "phantom", "modality": "ct_volume", "path": ids,
        "label": np.where(y == 1, "covid19", "cap"), "patient_id": patient,
        "sex": np.repeat(rng.choice(["F", "M"], patients), 2), "age": np.repeat(rng.uniform(20, 80, patients), 2),
        "site": np.repeat(rng.choice(["A", "B"], patients), 2),
    }  # fmt: skip
    write_parquet(out / "manifest.parquet", conform(pd.DataFrame(frame)))
    known = pd.DataFrame({"image_id": ids, "ratio": ratio, "outlined": ~np.isnan(ratio)})
    write_parquet(places.segmented(out, "ct_volume") / "ratio.parquet", known)
    part = np.repeat(rng.permutation(patients), 2)
    splits = []
    for fold in range(folds):
        role = np.where(part % folds == fold, "test", np.where(part // folds % 3 == 0, "tune", "train"))
        if folds == 1:
            role = np.where(part % 3 == 0, "test", np.where(part % 3 == 1, "tune", "train"))
        splits.append(pd.DataFrame({"cohort": "ct", "fold": fold, "image_id": ids, "group_id": patient, "role": role}))
        for run in ("ds_u", "ds_b"):
            z = signal * (2 * y - 1) + rng.normal(0, 2, n)
            logits = np.stack([np.zeros(n), z], axis=1)
            for name in ("tune", "test"):
                rows = role == name
                p = probabilities(logits[rows])
                table = pd.DataFrame(
                    {
                        "run": run, "task": "covid_vs_cap", "fold": fold, "role": name,
                        "image_id": np.array(ids)[rows], "patient_id": patient[rows],
                        "logit_cap": logits[rows, 0], "logit_covid19": logits[rows, 1],
                        "p_cap": p[:, 0], "p_covid19": p[:, 1],
                    }
                )  # fmt: skip
                if name == "tune":
                    table["target"] = y[rows]
                else:
                    heat = rng.random((int(rows.sum()), *CELLS)).astype(np.float16)
                    heat[:, 1, 1, 1] = 4.0
                    folder = out / "predictions" / run / str(fold)
                    folder.mkdir(parents=True, exist_ok=True)
                    np.save(folder / "attention.npy", heat)
                write_parquet(out / "predictions" / run / str(fold) / f"{name}.parquet", table)
    write_parquet(out / "splits.parquet", pd.concat(splits, ignore_index=True))
    masks = np.zeros((n, *SHAPE), np.uint8)
    masks[:, :, 2:14, 2:14] |= 1
    masks[:, 2:4, 4:8, 4:8] |= 6
    pack = out / "packs" / "small"
    pack.mkdir(parents=True)
    np.save(pack / "masks.npy", masks)
    np.save(pack / "data.npy", np.zeros((n, *SHAPE), np.int16))
    index = {"row": range(n), "image_id": ids, "has_lung": True, "has_infection": ~np.isnan(ratio)}
    write_parquet(pack / "index.parquet", pd.DataFrame(index))
    write_json(pack / "recipe.json", RECIPE)
    write_json(out / "shortcuts" / "covid_vs_cap.json", unmeasured("covid_vs_cap", "small", "made-up volumes"))
