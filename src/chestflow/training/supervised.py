"""Plain supervised training of an X-ray network: the settings, and the one phase that follows from them.

Methods whose training is cross entropy in one phase extend :class:`Supervised` (:class:`FineTuned` where a torchvision
backbone may bring weights) by their network's options and call :func:`classify`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.errors import ConfigError
from chestflow.methods.registry import InputSpec, at_least_one, ours
from chestflow.nn.backbones import Backbone, load_weights
from chestflow.training.augmentation import random_affine, random_subset
from chestflow.training.optimisers import OPTIMISERS, SCHEDULES, check_rates, optimiser_of, schedule_of
from chestflow.training.phases import Augmentation, Batch, Phase, Sampler, respond
from chestflow.training.samplers import oversample, uniform

Prepare = Callable[[nn.Module, Iterator[Batch]], None]


@dataclass(frozen=True)
class Supervised:
    """Settings of a training with cross entropy in one phase.

    The defaults are those with which paper 001 trains its comparators and its own network, as far as it states them.
    """

    optimiser: str = ours("sgd", "as paper 001", choices=OPTIMISERS)
    lr: float = ours(1e-3, "as paper 001")
    momentum: float = ours(0.9, "as paper 001; adam leaves it unused")
    weight_decay: float = ours(1e-6, "as paper 001")
    schedule: str = ours("none", "cosine to 0; step: a tenth every schedule_step epochs", choices=SCHEDULES)
    schedule_step: int = ours(7, "epochs, as the script of Minaee et al.")
    batch_size: int = ours(32, "as paper 001")
    accumulate: int = ours(1, "micro-batches a step, for small GPUs")
    epochs: int = ours(100, "as paper 001")
    patience: int | None = ours(None, "epochs without improvement before the training ends; null never")
    monitor: str = ours("auroc", "tune-role metric that chooses the best epoch")
    clip_norm: float | None = ours(None, "bound of the gradient's norm")
    oversample: int = ours(1, "times an image of the last class (COVID-19) is drawn in an epoch")
    flip: float = ours(0.5, "probability of a left-right mirror")
    rotate: float = ours(10.0, "degrees either way")
    translate: float = ours(0.05, "share of the side")
    scale: float = ours(0.1, "share either way")
    brightness: float = ours(0.1, "share either way")
    augment: bool = ours(True, "false turns all augmentation off")
    augmentation: str = ours("affine", "the five above; subset: paper 001's Table 2", choices=("affine", "subset"))

    def __post_init__(self) -> None:
        at_least_one(self, "oversample")
        check_rates(self)


@dataclass(frozen=True)
class FineTuned(Supervised):
    """The same for a network over a torchvision backbone."""

    weights: str | None = ours(None, "`imagenet` downloads; also a state dict's path")
    channels: int = ours(3, "of the backbone's first layer; 1 sums its kernels over RGB", choices=(1, 3))
    normalise: str = ours("imagenet", "", choices=("imagenet", "unit", "zscore", "zscore_column"))
    freeze_backbone: bool = ours(False, "true trains what stands over the backbone alone")


def cross_entropy(network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """Unweighted cross entropy of the logits."""
    return {"loss": F.cross_entropy(respond(network, batch).logits.float(), batch.target)}


def oversampled(factor: int) -> Sampler:
    """Each image of the last class (COVID-19) ``factor`` times an epoch, the others once."""

    def sample(table: pd.DataFrame, batch_size: int, generator: torch.Generator) -> Iterator[Sequence[int]]:
        if factor == 1:
            return uniform(table, batch_size, generator)
        return oversample({int(table["target"].max()): factor})(table, batch_size, generator)

    return sample


def pretrained(weights: str | None) -> Prepare | None:
    """A preparation that loads a network's ``backbone``; None without weights."""
    if weights is None:
        return None

    def prepare(network: nn.Module, batches: Iterator[Batch]) -> None:
        backbone = network.get_submodule("backbone")
        assert isinstance(backbone, Backbone)
        load_weights(backbone, weights)

    return prepare


def augmentation_of(config: Supervised) -> Augmentation | None:
    """The augmentation that the settings ask for; None where it is off."""
    if not config.augment:
        return None
    if config.augmentation == "subset":
        return random_subset()
    return random_affine(
        flip=config.flip,
        degrees=config.rotate,
        translate=config.translate,
        scale=config.scale,
        brightness=config.brightness,
    )


def classify(config: Supervised, *, trains: tuple[str, ...] = (), prepare: Prepare | None = None) -> Phase:
    """The phase ``classify``; see :class:`~chestflow.training.phases.Phase` for ``trains`` and ``prepare``."""
    return Phase(
        name="classify",
        loss=cross_entropy,
        optimiser=optimiser_of(config),
        sampler=oversampled(config.oversample),
        epochs=config.epochs,
        batch_size=config.batch_size,
        schedule=schedule_of(config),
        trains=trains,
        augment=augmentation_of(config),
        prepare=prepare,
        monitor=config.monitor,
        patience=config.patience,
        accumulate=config.accumulate,
        clip_norm=config.clip_norm,
    )


def require_pictures(method: str, spec: InputSpec, side: int) -> None:
    """Refuse what a network for X-rays and slices cannot read.

    Raises:
        ConfigError: volumes, images below ``side`` pixels, or fewer than two classes.
    """
    if spec.modality not in ("cxr", "ct_slice"):
        raise ConfigError(f"{method} reads cxr or ct_slice, not {spec.modality}: use another recipe")
    if len(spec.shape) != 2 or min(spec.shape) < side:
        raise ConfigError(f"{method} needs images of at least {side} pixels a side; the recipe makes {spec.shape}")
    if len(spec.classes) < 2:
        raise ConfigError(f"{method} needs at least two classes; the task has {spec.classes}")
