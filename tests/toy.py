"""A toy method and a toy workspace, small enough to train for real in a test, to be killed and to be resumed.

Everything that could differ after an interruption takes part: dropout, augmentation, batch norm, a schedule, momentum,
accumulation, two phases of which the second freezes the body, a preparation and early stopping, a head that the first
phase alone needs, and a measure of its own.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.data.packs import Pack
from chestflow.files import write_json, write_parquet
from chestflow.methods import registry
from chestflow.methods.registry import InputSpec, Method, ours
from chestflow.nn.output import Output
from chestflow.segmentation import places
from chestflow.training import samplers
from chestflow.training.inference import Inferred
from chestflow.training.monitors import centre_metrics
from chestflow.training.phases import Batch, Phase

CLASSES = {"rest": ["normal", "viral_pneumonia"], "covid19": ["covid19"]}
SIDE = 12


@dataclass(frozen=True)
class ToyConfig:
    epochs: int = ours(2)
    batch_size: int = ours(6)
    accumulate: int = ours(1)
    norm: bool = ours(True)
    dropout: float = ours(0.3)
    augment: bool = ours(True)
    phases: int = ours(2)
    lr: float = ours(0.01)
    patience: int | None = ours(None)
    map: bool = ours(False)
    oversample: int = ours(1)
    clip_norm: float | None = ours(None)
    aid: bool = ours(False)
    poison: str = ours("", choices=("", "loss", "gradient"))
    modality: str = ours("cxr")


class ToyNetwork(nn.Module):
    """Convolution, optional batch norm, pooling, dropout, one linear layer; 2D or 3D."""

    def __init__(self, config: ToyConfig, spec: InputSpec) -> None:
        super().__init__()
        three = len(spec.shape) == 3
        conv, norm = (nn.Conv3d, nn.BatchNorm3d) if three else (nn.Conv2d, nn.BatchNorm2d)
        self.body = nn.Sequential(conv(1, 6, 3, 2, 1), norm(6) if config.norm else nn.Identity(), nn.ReLU())
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(6, len(spec.classes))
        self.aid = nn.Linear(6, 3) if config.aid else None
        self.scale, self.with_map = (1000.0 if three else 255.0), config.map

    def forward(self, image: Tensor, lung: Tensor | None = None) -> Output:
        x = image / self.scale if lung is None else image / self.scale * lung
        features = self.body(x)
        pooled = features.flatten(2).mean(2)
        heat = features.sum(1, keepdim=True) if self.with_map else None
        aid = None if self.aid is None else self.aid(pooled)
        return Output(self.head(self.dropout(pooled)), features, heat, pooled, projection=aid)


class _Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


def _jitter(batch: Batch, generator: torch.Generator) -> Batch:
    batch.image = batch.image * (0.9 + 0.2 * torch.rand(1, generator=generator).to(batch.image.device))
    return batch


def _measure(found: Inferred, target: Any) -> dict[str, float]:
    return {"auroc": 0.5 - abs(centre_metrics(found.embedding, target)["centre_sensitivity"] - 0.5)}


def phases(config: ToyConfig) -> list[Phase]:
    """One phase for everything and, if asked, a second one for the head alone."""

    def loss(network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        Interruption.step()
        output = network(batch.image, batch.lung)
        value = F.cross_entropy(output.logits.float(), batch.target)
        if output.projection is not None:
            value = value + output.projection.square().mean()
        if config.poison == "loss":
            value = value / 0
        if config.poison == "gradient":
            value = _Poison.apply(value)
        return {"loss": value, "norm": output.logits.detach().norm()}

    def prepare(network: nn.Module, batches: Iterator[Batch]) -> None:
        with torch.no_grad():
            network.head.bias.add_(next(batches).image.mean() / 1000 + torch.rand(()) / 100)

    common: dict[str, Any] = {
        "loss": loss,
        "sampler": samplers.oversample({1: config.oversample}),
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "augment": _jitter if config.augment else None,
        "clip_norm": config.clip_norm,
    }
    whole = Phase(
        name="whole",
        optimiser=lambda p: torch.optim.Adam(p, lr=config.lr),
        schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        prepare=prepare,
        patience=config.patience,
        measure=_measure if config.aid else None,
        **common,
    )
    head = Phase(
        name="head",
        optimiser=lambda p: torch.optim.SGD(p, lr=config.lr, momentum=0.9),
        trains=("head",),
        drops=("aid",) if config.aid else (),
        monitor="loss",
        **common,
    )
    return [whole, head][: config.phases]


METHOD = Method("toy", "none", ("cxr", "ct_slice", "ct_volume"), ToyConfig, ToyNetwork, phases)


class Interruption:
    """Ends this process by a signal at its n-th micro-batch."""

    left: int | None = None
    signal = signal.SIGKILL

    @classmethod
    def step(cls) -> None:
        if cls.left is not None:
            cls.left -= 1
            if cls.left == 0:
                os.kill(os.getpid(), cls.signal)


def make_pack(n: int = 36, shape: tuple[int, ...] = (SIDE, SIDE), seed: int = 0) -> tuple[Pack, np.ndarray]:
    """A pack in memory and its classes; COVID-19 is brighter in the middle."""
    rng = np.random.default_rng(seed)
    volume = len(shape) == 3
    target = np.arange(n) % 2
    data = rng.integers(-900, 0, (n, *shape)) if volume else rng.integers(0, 120, (n, *shape))
    middle = tuple(slice(s // 3, 2 * s // 3) for s in shape)
    data[(target == 1, *middle)] += 800 if volume else 90
    masks = np.zeros((n, *shape), np.uint8)
    masks[(slice(None), *(slice(1, s - 1) for s in shape))] = 1
    masks[(target == 1, *middle)] |= 2
    recipe = {"modality": "ct_volume" if volume else "cxr", "size": list(shape)}
    index = pd.DataFrame({"row": range(n), "image_id": [f"toy-{i:04}" for i in range(n)]})
    index = index.assign(has_lung=True, has_infection=True)
    return Pack(data.astype(np.int16 if volume else np.uint8), masks, index, recipe), target


def table(rows: np.ndarray | range, target: np.ndarray) -> pd.DataFrame:
    """A training table of these rows."""
    return pd.DataFrame({"row": list(rows), "target": target[list(rows)], "ratio": 0.01 * np.arange(len(rows))})


def write_workspace(out: Path, shape: tuple[int, ...] = (SIDE, SIDE)) -> None:
    """The stages' outs that training reads: 36 images, 20 train, 8 tune, 6 test, one external, one of another label."""
    pack, target = make_pack(36, shape)
    ids = pack.index["image_id"]
    labels = np.where(target == 1, "covid19", np.where(np.arange(36) % 4 == 0, "normal", "viral_pneumonia"))
    labels[35] = "other_infection"
    roles = ["train"] * 20 + ["tune"] * 8 + ["test"] * 6 + ["external", "test"]
    split = pd.DataFrame({"cohort": "toys", "fold": 0, "image_id": ids, "group_id": ids, "role": roles})
    write_parquet(out / "splits.parquet", split)
    patient = [f"p{i // 2}" if i % 5 else None for i in range(36)]
    modality = pack.recipe["modality"]
    about = {"image_id": ids, "patient_id": patient, "label": labels, "modality": modality}
    write_parquet(out / "manifest.parquet", pd.DataFrame(about))
    ratio = np.where(np.arange(36) % 7 == 0, np.nan, 0.01)
    write_parquet(places.segmented(out, modality) / "ratio.parquet", pd.DataFrame({"image_id": ids, "ratio": ratio}))
    folder = out / "packs" / "toy"
    folder.mkdir(parents=True)
    np.save(folder / "data.npy", pack.data)
    np.save(folder / "masks.npy", pack.masks)
    write_parquet(folder / "index.parquet", pack.index)
    write_json(folder / "recipe.json", pack.recipe)


def settings(**changes: Any) -> SimpleNamespace:
    """The engine section."""
    return SimpleNamespace(**({"device": "cpu", "amp": "auto", "threads": 1, "checkpoint_every": None} | changes))


def params(config: dict[str, Any] | None = None, **engine: Any) -> SimpleNamespace:
    """A params object without the schema."""
    run = SimpleNamespace(method="toy", task="covid_vs_rest", recipe="toy", config=config or {}, uses={}, seed=3)
    task = SimpleNamespace(cohort="toys", classes=CLASSES)
    return SimpleNamespace(
        profile="toy", seed=1, engine=settings(**engine), runs={"toy_run": run}, tasks={"covid_vs_rest": task}
    )


def install() -> None:
    """Let the registry know the toy."""
    known = registry.get
    registry.get = lambda name: METHOD if name == "toy" else known(name)


def train(
    root: Path,
    config: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    kill: tuple[int, int] | None = None,
    kill_saving: int | None = None,
    ranks: tuple[int, int, int] | None = None,
) -> None:
    """Train in a process of its own; ``kill`` is (micro-batch, signal), ``kill_saving`` the checkpoint to die in."""
    from chestflow.training.run import train_run

    assert threading.current_thread() is threading.main_thread()
    install()
    if kill is not None:
        Interruption.left, Interruption.signal = kill[0], signal.Signals(kill[1])
    if kill_saving is not None:
        _die_while_saving(kill_saving)
    if ranks is not None:
        rank, size, port = map(str, ranks)
        os.environ.update(RANK=rank, WORLD_SIZE=size, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, LOCAL_RANK=rank)
    train_run(params(config, **(engine or {})), "toy_run", 0, root / "out", root / ".checkpoints")


def _die_while_saving(number: int) -> None:
    save = torch.save
    count = 0

    def half(state: Any, path: Any) -> None:
        nonlocal count
        count += 1
        save(state, path)
        if count == number:
            with open(path, "r+b") as stream:
                stream.truncate(os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half
