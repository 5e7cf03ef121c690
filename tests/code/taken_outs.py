"""Parameters of runs that take over other stages' products, and made-up outs of those stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestflow.config import Params, parse
from chestflow.data.manifest import conform
from chestflow.files import write_json, write_parquet
from chestflow.segmentation import places
from chestflow.segmentation.infection_evidence import Measured, evidence
from chestflow.training import history

FOLDS = 5


def params(**changes: Any) -> Params:
    """A global run that starts from a pretraining, and a run that takes it over with a tuned tau."""
    slices = {"sets": ["covid_ct"], "normal_as_empty": True, "pseudo": {"sets": ["covid_semiseg"]}}
    values: dict[str, Any] = {
        "profile": "toys",
        "data": {"sets": ["covid_ct", "covid_semiseg"]},
        "cohorts": {"slices": {"sets": ["covid_ct"], "modality": "ct_slice"}},
        "recipes": {"small": {"modality": "ct_slice", "size": [64, 64]}},
        "tasks": {"t": {"cohort": "slices", "classes": {"rest": ["normal"], "covid19": ["covid19"]}}},
        "infection": {"ct_slice": slices},
        "pretraining": {"moco": {"cohort": "slices", "recipe": "small", "backbone": "resnet18", "channels": 1}},
        "runs": {
            "base": {
                "method": "baselines", "task": "t", "recipe": "small", "uses": {"weights": "moco"},
                "config": {"network": "resnet18", "channels": 1},
            },
            "known": {
                "method": "multi_knowledge", "task": "t", "recipe": "small", "uses": {"global": "base"},
                "config": {"tau": None, "global_branch": "run", "backbone": "resnet18", "channels": 1},
            },
        },
    }  # fmt: skip
    return parse({**values, **changes})


def measured(number: int, source: str = "covid_ct", *, infected: bool = True) -> Measured:
    rng = np.random.default_rng(number)
    figures = {"dice": rng.uniform(0.6, 0.9), "sensitivity": 0.8, "specificity": 0.97, "s_measure": 0.8}
    figures |= {"e_measure": 0.9, "e_measure_adaptive": 0.9, "mae": 0.05, "hd95": 6.0}
    marked = 0.1 if infected else 0.0
    return Measured(f"a-{number}", source, f"p-{number}", infected, marked, figures, 0.2 * infected, 0.15 * infected)


def tau(use: str = "paper") -> dict[str, Any]:
    """What tune_tau writes: 0.60 is best, 0.40 was given up."""
    points = [(0.4, 0.55, True), (0.6, 0.9, False), (0.75, 0.85, False)]
    curve = [{"tau": t, "value": v, "epochs": 3, "pruned": p} for t, v, p in points]
    trials = [
        {"number": i, "values": {"tau": t}, "objective": -v, "pruned": p, "reports": 3}
        for i, (t, v, p) in enumerate(points[::-1])
    ]
    low = 0.01 if use == "tuned" else -0.02
    return {
        "run": "known", "fold": 0, "images": 40, "criterion": "auroc", "epochs": 3, "range": [0.3, 0.95], "use": use,
        "tau": 0.6 if use == "tuned" else 0.75, "paper": {"tau": 0.75, "value": 0.85},
        "tuned": {"tau": 0.6, "value": 0.9}, "curve": curve, "trials": trials,
        "gain": {"value": 0.03, "lo": low, "hi": 0.08, "n": 40, "reason": None, "method": "bootstrap"},
        "spread": {"median": 0.6, "lo": 0.6, "hi": 0.75, "sd": 0.05, "resamples": 20},
    }  # fmt: skip


def rounds() -> list[dict[str, Any]]:
    return [
        {
            "round": number, "labelled": 4, "trained_on": 20 + 4 * (number - 1), "model": f"{number}" * 64,
            "held": {"dice": 0.6 + 0.05 * number, "slices": 8.0}, "confidence": [1, 1, 1, 1, 2, 2, 3, 5, 10, 900],
            "empty": number,
        }
        for number in (1, 2)
    ]  # fmt: skip


def write_manifest(out: Path) -> None:
    """Images with masks, a healthy one, one without a mask, and one of the other set that gets a pseudo label."""
    rows = [
        {"image_id": "a-0", "label": "covid19", "infection_mask": ["m.png"]},
        {"image_id": "a-1", "label": "normal"},
        {"image_id": "a-2", "label": "covid19"},
        {"image_id": "b-0", "label": "covid19", "source": "covid_semiseg"},
    ]
    common = {"modality": "ct_slice", "source": "covid_ct", "path": "x.png"}
    found = [{**common, **row, "patient_id": f"p-{row['image_id']}"} for row in rows]
    write_parquet(out / "manifest.parquet", conform(pd.DataFrame(found)))
    splits = [
        {"cohort": "slices", "fold": fold, "image_id": name, "group_id": name, "role": role}
        for fold in range(FOLDS)
        for name, role in (("a-0", "train"), ("a-1", "train"), ("a-2", "test"), ("b-0", "train"))
    ]
    write_parquet(out / "splits.parquet", pd.DataFrame(splits))


def write_pretraining(out: Path) -> None:
    folder = out / "pretrain" / "moco"
    settings = params().pretraining["moco"].model_dump(mode="json")
    about = {"name": "moco", "settings": settings, "images": 2, "last": {"loss": 5.5, "found": 0.4}}
    write_json(folder / "pretrain.json", about)
    rows = [{"epoch": e, "lr": 0.1, "train_loss": 6.0 - e / 4, "train_found": 0.2 * e} for e in (1, 2)]
    history.write(folder / "history.csv", rows)
    (folder / "weights.safetensors").write_bytes(b"pretrained")


def write_infection(out: Path) -> dict[str, Any]:
    """The evidence of six infected images of two sets and two healthy ones, and two rounds of pseudo labels."""
    cases = [measured(number, "covid_ct" if number < 4 else "other") for number in range(6)]
    cases += [measured(number, infected=False) for number in (6, 7)]
    said = {"mode": "held_out", "trained_on": {"images": 20, "patients": 18}, **evidence(cases)}
    folder = places.infection(out, "ct_slice")
    write_json(folder / "evidence.json", said)
    masks = {"b-0": {"round": 1, "model": "1" * 64}}
    write_json(folder / "pseudo.json", {"final": {"rounds": rounds(), "masks": masks}})
    (folder / "ct_slice.safetensors").write_bytes(b"segmenter")
    return said


def write(out: Path, use: str = "paper") -> None:
    """The outs of all stages before the training."""
    write_manifest(out)
    write_pretraining(out)
    write_infection(out)
    write_json(out / "tune/tau/known/0.json", tau(use))
    write_json(out / "tau/known/0.json", {"tau": tau(use)["tau"]})
    for run in ("base", "known"):
        (out / "train" / run / "0").mkdir(parents=True)
        (out / "train" / run / "0" / "weights.safetensors").write_bytes(run.encode())
