"""A phase of training: what trains, what is frozen, on which loss, with which optimiser, sampler and monitor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from chestflow.errors import ConfigError
from chestflow.training.monitors import CLASSIFIED, MONITORS

if TYPE_CHECKING:
    from chestflow.nn.output import Output
    from chestflow.training.inference import Inferred


@dataclass
class Batch:
    """One batch on the network's device.

    Attributes:
        image: float32 (B, 1, H, W) grey values in [0, 255], or (B, 1, D, H, W) in HU. Never normalised: the network's
            input layer does that.
        target: int64 (B,), the class index; -1 where the label is withheld (role test).
        lung: float32 {0, 1} of image's shape, or None where the pack has none.
        infection: float32 {0, 1} of image's shape, or None.
        has_infection: bool (B,), whether an infection mask exists for the sample (an existing mask may be empty).
        ratio: float32 (B,), infection / lung volume on the original grid; NaN where unknown.
        rows: int64 (B,), positions in the pack.
        counted: what the phase's ``counts`` found in all batches of the step together, where the step is split over
            micro-batches or processes; None where this batch is the whole step.
        share: of the step's samples that are in this batch; 1 where ``counted`` is None.
    """

    image: Tensor
    target: Tensor
    lung: Tensor | None
    infection: Tensor | None
    has_infection: Tensor
    ratio: Tensor
    rows: Tensor
    counted: Tensor | None = None
    share: float = 1.0


def respond(network: nn.Module, batch: Batch) -> Output:
    """The network's output for a batch; the infection mask goes to those that read it alone."""
    inner = getattr(network, "module", network)  # several processes wrap the network
    if getattr(inner, "reads_infection", False):
        apart = getattr(inner, "unknown_infection_is_nan", False)
        return cast("Output", network(batch.image, batch.lung, unknown_as_nan(batch) if apart else batch.infection))
    return cast("Output", network(batch.image, batch.lung))


def unknown_as_nan(batch: Batch) -> Tensor | None:
    """The batch's infection masks, NaN in samples that have none, so that these differ from empty ones."""
    if batch.infection is None:
        return None
    unknown = ~batch.has_infection.view(-1, *[1] * (batch.infection.ndim - 1))
    return batch.infection.masked_fill(unknown, float("nan"))


#: (network, batch, generator) -> {"loss": scalar to descend, other names: scalars to log}
LossFunction = Callable[[nn.Module, Batch, torch.Generator], dict[str, Tensor]]
#: (training table with columns row, target, ratio; batch size; generator) -> batches of positions in that table, one
#: epoch a call
Sampler = Callable[[pd.DataFrame, int, torch.Generator], Iterator[Sequence[int]]]
Augmentation = Callable[[Batch, torch.Generator], Batch]
#: (what the network says of the tune role, its class indices) -> the tune role's metrics
Measure = Callable[["Inferred", NDArray[np.int64]], dict[str, float]]


@dataclass(frozen=True)
class Phase:
    """One phase; the engine runs a method's phases in order.

    Attributes:
        name: stands in metrics, checkpoints and history.
        loss: see :data:`LossFunction`; computed in float32 inside under mixed precision.
        optimiser: parameters that train -> optimiser.
        sampler: one of :mod:`chestflow.training.samplers`.
        schedule: optimiser -> learning-rate scheduler stepped once an epoch; None keeps the rate.
        epochs: upper bound.
        batch_size: samples a step over all processes; with ``accumulate`` it is split into that many micro-batches.
        trains: prefixes of the parameter names that train; () trains everything. The rest has gradients off **and**
            stays in eval mode.
        augment: train role only, on the device, before the loss.
        prepare: called once before the first step with the network and the training batches (no augmentation), for
            initialisations that need data, such as k-means centres.
        monitor: tune-role metric that chooses the best epoch: auroc, macro_f1, macro_sensitivity, accuracy (higher
            is better) or loss (lower is better).
            A phase with a ``measure`` of its own may name any of its metrics in :data:`monitors.MONITORS`.
        measure: how to measure the tune role; None takes the classification metrics of the logits, which mean nothing
            while the classifier is untrained.
        drops: children of the network that are removed before the phase begins, for good: what an earlier phase alone
            needed. They are neither saved nor served.
        patience: epochs without improvement before the phase ends; None never ends it early.
        accumulate: micro-batches a step.
        clip_norm: gradient norm bound; None does not clip.
        mixes_samples: the loss compares the samples of a batch with each other, so a batch dealt out over processes, or
            split into micro-batches, would be another loss.
        counts: how many of a batch's samples a part of the loss is the mean over, where that is not all of them. The
            step weighs its micro-batches by their samples, so such a part divides by ``batch.counted * batch.share``
            and not by its own number. It must not look at what augmentation changes.
    """

    name: str
    loss: LossFunction
    optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    sampler: Sampler
    epochs: int
    batch_size: int
    schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None
    trains: tuple[str, ...] = ()
    augment: Augmentation | None = None
    prepare: Callable[[nn.Module, Iterator[Batch]], None] | None = None
    monitor: str = "auroc"
    measure: Measure | None = None
    drops: tuple[str, ...] = ()
    patience: int | None = None
    accumulate: int = 1
    clip_norm: float | None = None
    mixes_samples: bool = False
    counts: Callable[[Batch], Tensor] | None = None
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would fail, or do harm, only once an epoch has passed.

        Raises:
            ConfigError: an unknown monitor, one that nothing measures, or a number out of its range.
        """
        where = f"phase {self.name}"
        if self.monitor not in MONITORS:
            raise ConfigError(f"{where}: monitor is {self.monitor!r}; choose one of {', '.join(MONITORS)}")
        if self.measure is None and self.monitor not in CLASSIFIED:
            raise ConfigError(
                f"{where}: monitor {self.monitor} is not measured here; choose one of {', '.join(CLASSIFIED)}"
            )
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{where}: {name} is {getattr(self, name)}; it must be at least 1")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"{where}: patience is {self.patience}; it must be at least 1, or null")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(f"{where}: clip_norm is {self.clip_norm}; it must be above 0, or null")


def trainable(network: nn.Module, phase: Phase) -> list[tuple[str, nn.Parameter]]:
    """The named parameters that a phase trains; an unknown prefix raises ``ValueError``."""
    named = list(network.named_parameters())
    for prefix in phase.trains:
        if not any(name == prefix or name.startswith(prefix + ".") for name, _ in named):
            raise ValueError(f"phase {phase.name} trains {prefix!r}, which the network does not have")
    if not phase.trains:
        return named
    return [(n, p) for n, p in named if any(n == t or n.startswith(t + ".") for t in phase.trains)]


def apply_freezing(network: nn.Module, phase: Phase) -> list[nn.Parameter]:
    """Put the network in the phase's state: what trains in train mode with gradients, the rest frozen in eval mode.

    A frozen module's batch-norm statistics stay as they are, because it is in eval mode and not only without gradients.
    """
    names = {name for name, _ in trainable(network, phase)}
    network.train()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)
    if phase.trains:
        for name, module in network.named_modules():
            inside = any(name == t or name.startswith(t + ".") for t in phase.trains)
            above = any(t.startswith(name + ".") or name == "" for t in phase.trains)
            if not inside and not above:
                module.training = False
    return [p for n, p in network.named_parameters() if n in names]


def drop(network: nn.Module, names: Sequence[str]) -> None:
    """Remove modules by dotted name; the place becomes None, and what is gone already stays gone.

    Raises:
        ValueError: the network has no such place.
    """
    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner = network.get_submodule(parent)
        if leaf not in owner._modules:
            raise ValueError(f"{name!r} is to be dropped, but the network does not have it")
        setattr(owner, leaf, None)
