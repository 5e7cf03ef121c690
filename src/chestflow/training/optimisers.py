"""Optimisers and learning-rate schedules by name, for the configs of methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

OPTIMISERS = ("sgd", "adam")
SCHEDULES = ("none", "cosine", "step")


class Rates(Protocol):
    """What a config says about descending."""

    @property
    def optimiser(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def schedule(self) -> str: ...
    @property
    def schedule_step(self) -> int: ...
    @property
    def epochs(self) -> int: ...


def check_rates(rates: Rates) -> None:
    """Refuse what cannot descend.

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """
    if rates.optimiser not in OPTIMISERS or rates.schedule not in SCHEDULES:
        raise ValueError(f"optimiser is one of {', '.join(OPTIMISERS)}, schedule one of {', '.join(SCHEDULES)}")
    if rates.lr <= 0 or rates.weight_decay < 0 or not 0 <= rates.momentum < 1:
        raise ValueError("lr must be above 0, weight_decay 0 or more, momentum in [0, 1)")
    if rates.schedule_step < 1:
        raise ValueError(f"schedule_step is {rates.schedule_step}; it must be at least 1")


def optimiser_of(rates: Rates) -> Callable[[list[nn.Parameter]], Optimizer]:
    """Makes SGD with momentum, or Adam (which leaves ``momentum`` unused)."""

    def make(parameters: list[nn.Parameter]) -> Optimizer:
        if rates.optimiser == "adam":
            return torch.optim.Adam(parameters, lr=rates.lr, weight_decay=rates.weight_decay)
        return torch.optim.SGD(parameters, rates.lr, rates.momentum, weight_decay=rates.weight_decay)

    return make


def schedule_of(rates: Rates) -> Callable[[Optimizer], LRScheduler] | None:
    """``cosine`` falls to 0 over all epochs, ``step`` to a tenth every ``schedule_step`` epochs; ``none`` is None."""
    if rates.schedule == "none":
        return None

    def make(stepped: Optimizer) -> LRScheduler:
        if rates.schedule == "step":
            return StepLR(stepped, rates.schedule_step, gamma=0.1)
        return CosineAnnealingLR(stepped, rates.epochs)

    return make
