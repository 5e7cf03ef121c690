"""Slices for the tests of the multi-knowledge network: noise with a bright lesion whose place is the class."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch

from chestflow.data.packs import Pack
from chestflow.files import write_json, write_parquet
from chestflow.methods import registry
from chestflow.methods.registry import InputSpec
from chestflow.segmentation import places

METHOD = registry.get("multi_knowledge")
CLASSES = ("rest", "covid19")
SIDE = 64
SMALL: dict[str, Any] = {"backbone": "resnet18", "channels": 1, "batch_size": 8, "epochs": 1, "lr": 0.003}
SETTINGS = SimpleNamespace(device="cpu", amp="off", threads=1, checkpoint_every=None)


def make_pack(n: int = 24, seed: int = 0) -> tuple[Pack, np.ndarray]:
    """COVID-19 carries a lesion on one side or on both, with its mask; the rest nothing; every fifth has no mask."""
    rng = np.random.default_rng(seed)
    target = np.arange(n) % 2
    data = rng.integers(0, 90, (n, SIDE, SIDE))
    masks = np.zeros((n, SIDE, SIDE), np.uint8)
    masks[:, 8:56, 8:56] |= 1
    for i in np.flatnonzero(target):
        for left in ((10,), (40,), (10, 40))[i % 3]:
            top = int(rng.integers(10, 36))
            data[i, top : top + 14, left : left + 12] += 140
            masks[i, top : top + 14, left : left + 12] |= 2
    index = pd.DataFrame({"row": range(n), "image_id": [f"slice-{i:03}" for i in range(n)]})
    index = index.assign(has_lung=True, has_infection=np.arange(n) % 5 != 4)
    return Pack(data.astype(np.uint8), masks, index, {"modality": "ct_slice", "size": [SIDE, SIDE]}), target


def table(rows: Any, target: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"row": list(rows), "target": target[list(rows)], "ratio": np.nan})


def spec(side: int = SIDE, uses: dict[str, Any] | None = None) -> InputSpec:
    return InputSpec("ct_slice", (side, side), CLASSES, uses or {})


def build(side: int = SIDE, uses: dict[str, Any] | None = None, seed: int = 0, **values: Any) -> Any:
    torch.manual_seed(seed)
    return METHOD.build(registry.configure(METHOD, {**SMALL, **values}), spec(side, uses))


def used(method: str = "baselines", side: int = SIDE, **config: Any) -> dict[str, Any]:
    """What a run knows of another run's network."""
    values = registry.completed(registry.get(method), config or {"network": "resnet18", "channels": 1})
    shaped = {"modality": "ct_slice", "shape": [side, side], "classes": list(CLASSES), "uses": {}}
    return {"method": method, "config": values, "input": shaped, "dropped": []}


def slices(count: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and infection masks: both sides, left, right, none in turn."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 1, SIDE, SIDE, generator=generator) * 200
    infection = torch.zeros(count, 1, SIDE, SIDE)
    infection[0::4, :, 10:30, 4:20] = 1
    infection[1::4, :, 30:31, 8:9] = 1
    infection[0::4, :, 20:50, 40:60] = 1
    infection[2::4, :, 0:5, 60:64] = 1
    return image, infection


def write_workspace(out: Path, params: Any, n: int = 36) -> None:
    """The stages' outs that training reads, and a global run ``seen`` of one epoch."""
    from chestflow.training.run import train_run

    pack, target = make_pack(n)
    ids = pack.index["image_id"]
    roles = np.array(["train"] * 18 + ["tune"] * 12 + ["test"] * (n - 30))
    split = pd.DataFrame({"cohort": "slices", "fold": 0, "image_id": ids, "group_id": ids, "role": roles})
    write_parquet(out / "splits.parquet", split)
    label = np.where(target == 1, "covid19", "normal")
    manifest = pd.DataFrame({"image_id": ids, "patient_id": None, "label": label, "modality": "ct_slice"})
    write_parquet(out / "manifest.parquet", manifest)
    write_parquet(places.segmented(out, "ct_slice") / "ratio.parquet", pd.DataFrame({"image_id": ids, "ratio": np.nan}))
    folder = out / "packs" / "ct"
    folder.mkdir(parents=True)
    np.save(folder / "data.npy", pack.data)
    np.save(folder / "masks.npy", pack.masks)
    write_parquet(folder / "index.parquet", pack.index)
    write_json(folder / "recipe.json", pack.recipe)
    train_run(params, "seen", 0, out, out.parent / ".checkpoints")


def params(tau: dict[str, Any] | None = None, **config: Any) -> SimpleNamespace:
    """Two runs without the schema: ``seen``, a plain network, and ``known``, which looks closer at what that sees."""

    def run(method: str, config: dict[str, Any], uses: dict[str, str]) -> SimpleNamespace:
        return SimpleNamespace(method=method, task="covid", recipe="ct", config=config, uses=uses, seed=0)

    plain = {"network": "squeezenet1_1", "channels": 1, "epochs": 1, "batch_size": 8, "lr": 0.01}
    known = {**SMALL, "backbone": "squeezenet1_1", "global_branch": "run", "tau": None, **config}
    search = {
        "range": (0.3, 0.95), "trials": 3, "epochs": 1, "criterion": "auroc", "pruning": True, "prune_from": 2,
        "prune_after": 1, "bootstrap": 20, **(tau or {}),
    }  # fmt: skip
    return SimpleNamespace(
        profile="slices",
        seed=1,
        engine=SETTINGS,
        tasks={"covid": SimpleNamespace(cohort="slices", classes={"rest": ["normal"], "covid19": ["covid19"]})},
        runs={"seen": run("baselines", plain, {}), "known": run("multi_knowledge", known, {"global": "seen"})},
        tau=SimpleNamespace(**search),
    )
