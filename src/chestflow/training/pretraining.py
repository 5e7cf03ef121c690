"""Pretraining of a backbone on a cohort's pictures without their labels; what the stage pretrain@name calls.

The engine's steps, checkpoints and precision, but a loop of its own: there is no tune role to choose an epoch by, and
MoCo keeps its last weights. (The contrastive loss is lowest at the start, while the queue holds random vectors.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chestflow.errors import ConfigError, DataError
from chestflow.files import WEIGHTS, atomic_path, read_parquet, sha256_file, write_json
from chestflow.training import checkpoints
from chestflow.training.termination import stop_on_sigterm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from chestflow.data.packs import Pack

#: Takes an epoch's figures and its number.
Log = Callable[[dict[str, float], int], None]
#: Roles of which a pretraining may see the pictures.
SEEN = ("train", "unlabelled")


def allowed(params: Any, cohort: str, out: Path) -> list[str]:
    """Images whose role is train or unlabelled in every trained fold of the cohort, sorted.

    So the weights know no picture on which a run that starts from them is tuned or tested, whatever the fold.

    Raises:
        DataError: the split has no such fold, or there are fewer than two such images.
    """
    splits = read_parquet(out / "splits.parquet")
    splits = splits[(splits["cohort"] == cohort) & splits["fold"].isin(params.folds)]
    lost = sorted(set(params.folds) - set(splits["fold"]))
    if lost:
        raise DataError(f"{out}/splits.parquet has no fold {lost[0]} of cohort {cohort}: check `folds`, run the split")
    seen = splits["role"].isin(SEEN).groupby(splits["image_id"]).all()
    found = sorted(seen.index[seen])
    if len(found) < 2:
        raise DataError(
            f"cohort {cohort} has {len(found)} images that are for training in each of the folds {params.folds}: train"
            " fewer folds, or use an official test set"
        )
    return found


def pretrain(
    params: Any, name: str, out: Path = Path("out"), root: Path = Path(".checkpoints"), log: Log | None = None
) -> dict[str, Any]:
    """Train ``pretraining.<name>`` and write ``weights.safetensors`` (a state dict of
    :class:`~chestflow.nn.backbones.Backbone`), ``history.csv`` and ``pretrain.json`` under ``out/pretrain/<name>``.

    Killed at any moment, the same call goes on from its last epoch and writes the same bytes.

    Args:
        params: of params.yaml: profile, seed, folds, engine, recipes, pretraining.
        name: of the pretraining.
        out: the stages' outs.
        root: of what only an interrupted training needs.
        log: takes each epoch's figures.

    Returns:
        What pretrain.json holds.

    Raises:
        ConfigError: volumes, several processes, or images that the backbone cannot read.
        DataError: an input is missing, or no image may be used.
        TrainingError: a loss or gradient is not finite, or the first weights cannot be read.
        Terminated: SIGTERM came; nothing is half-written.
    """
    from safetensors.torch import save_file

    from chestflow.data.packs import Pack
    from chestflow.training import history

    section = params.pretraining[name]
    images = allowed(params, section.cohort, out)
    pack = Pack.open(out / "packs" / section.recipe)
    _require(name, section, pack)
    folder = checkpoints.place(root, _key(params, section, pack, images), f"pretrain-{name}", 0)
    with stop_on_sigterm():
        backbone, epochs, engine = _fit(params, section, pack, images, folder, log)
    where = out / "pretrain" / name
    state: dict[str, Tensor] = {k: v.detach().cpu().contiguous().clone() for k, v in backbone.state_dict().items()}
    with atomic_path(where / WEIGHTS) as temporary:
        save_file(state, temporary)
    history.write(where / "history.csv", epochs)
    description = {
        "name": name, "profile": params.profile, "settings": dict(vars(section)), "seed": params.seed + section.seed,
        "images": len(images), "folds": list(params.folds), "roles": list(SEEN), "engine": engine,
        "last": {key: epochs[-1][f"train_{key}"] for key in ("loss", "found")},
        "weights_sha256": sha256_file(where / WEIGHTS),
    }  # fmt: skip
    write_json(where / "pretrain.json", description)
    checkpoints.clear(folder)
    return description


def _require(name: str, section: Any, pack: Pack) -> None:
    from chestflow.nn.backbones import CHANNELS, MIN_SIDE

    if section.backbone not in CHANNELS:
        raise ConfigError(f"pretraining.{name}.backbone is {section.backbone!r}; choose one of {', '.join(CHANNELS)}")
    shape, side = pack.data.shape[1:], MIN_SIDE[section.backbone]
    if len(shape) != 2 or min(shape) < side:
        raise ConfigError(
            f"pretraining.{name}: {section.backbone} reads pictures of at least {side} pixels a side; recipe"
            f" {section.recipe} makes {tuple(shape)}"
        )


def _key(params: Any, section: Any, pack: Pack, images: list[str]) -> str:
    """Of everything that determines the weights; the pictures by their bytes."""
    pictures = hashlib.sha256()
    for row in pack.rows_of(images):
        pictures.update(pack.data[row].tobytes())
    package = Path(__file__).parent.parent
    code = [p for part in ("nn", "training") for p in sorted((package / part).glob("*.py"))]
    start = section.weights if section.weights in (None, "imagenet") else sha256_file(Path(section.weights))
    return checkpoints.key({
        "settings": {**vars(section), "weights": start}, "seed": params.seed, "images": images,
        "pictures": pictures.hexdigest(),
        "engine": [params.engine.device, params.engine.amp, params.engine.threads, version("torch")],
        "code": {f"{p.parent.name}/{p.name}": sha256_file(p) for p in code},
    })  # fmt: skip


def _fit(
    params: Any, section: Any, pack: Pack, images: list[str], folder: Path, log: Log | None
) -> tuple[nn.Module, list[dict[str, Any]], dict[str, Any]]:
    """The query encoder's backbone after the last epoch, the rows of history.csv, and where it ran."""
    import pandas as pd
    import torch

    from chestflow.nn.backbones import load_weights
    from chestflow.training import distributed, history, moco
    from chestflow.training.hardware import choose_device, make_reproducible, mixed, seed_of
    from chestflow.training.loader import Reader
    from chestflow.training.phases import apply_freezing
    from chestflow.training.progress import Progress
    from chestflow.training.steps import Course, Stepper

    make_reproducible(params.engine.threads)
    device = choose_device(params.engine.device)
    world = distributed.enter(device.type)
    if world.size > 1:
        raise ConfigError("a pretraining compares the pictures of a batch with each other: run it without torchrun")
    amp = mixed(device, params.engine.amp, volumes=False)
    seed = params.seed + section.seed
    torch.manual_seed(seed_of(seed, "initial weights"))
    network = moco.MoCo(section)
    if section.weights is not None:
        load_weights(network.query.backbone, section.weights)
        network.align()
    network.to(device).to(memory_format=torch.channels_last)
    phase = moco.phase(section)
    parameters = apply_freezing(network, phase)
    optimiser = phase.optimiser(parameters)
    assert phase.schedule is not None
    schedule = phase.schedule(optimiser)
    course, saved = Course(), checkpoints.load(folder)
    if saved:
        course = Course(**saved["course"])
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
    table = pd.DataFrame({"row": pack.rows_of(images), "target": -1, "ratio": np.nan})
    reader = Reader(pack, table, device)
    stepper = Stepper(phase, network, parameters, optimiser, reader, device, amp, world, seed)
    progress = Progress(phase.epochs - course.epoch)
    try:
        while course.epoch < phase.epochs:
            order = list(phase.sampler(table, phase.batch_size, course.generator(seed, "order")))
            progress.begin(f"{phase.name} {course.epoch + 1}/{phase.epochs}", len(order))
            for samples in stepper.epoch(course, order):
                progress.step(samples)
            row = {"epoch": course.epoch + 1, "lr": float(optimiser.param_groups[0]["lr"])}
            row |= {f"train_{key}": value / course.samples for key, value in sorted(course.sums.items())}
            course = Course(epoch=course.epoch + 1, epochs=[*course.epochs, row])
            schedule.step()
            state = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
            state |= {"schedule": schedule.state_dict(), "course": dict(vars(course))}
            checkpoints.save(folder, state, {"phase": phase.name, "epoch": course.epoch, "step": 0})
            if log is not None:
                log(history.metrics(row), course.epoch)
            progress.end(f"{phase.name} {course.epoch}/{phase.epochs}  loss {row['train_loss']:.4f}")
    finally:
        progress.close()
    ran = {"device": device.type, "amp": amp, "threads": params.engine.threads, "torch": version("torch")}
    return network.query.backbone, course.epochs, ran
