"""The loop that trains a segmenter: epochs of losses, a rate by schedule, and a state after each epoch to go on from.

Interrupted after any epoch and continued from its state, it ends with the same weights, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chestflow.errors import TrainingError

DECAY_EPOCHS = 50  # Inf-Net's code
State = dict[str, Any]


@dataclass(frozen=True)
class Course:
    """How long and how fast: epochs, Adam's rate, its schedule, and the bound on each gradient (None: unbounded)."""

    epochs: int
    lr: float
    schedule: str = "constant"
    clip_value: float | None = None


def rate(course: Course, epoch: int) -> float:
    """The rate of an epoch, counted from 1.

    ``step`` divides by 10 after each 50 epochs, as Inf-Net states it. ``compounding`` is what its code does: the rate
    of the epoch before is multiplied by 0.1 ** (epoch // 50), so that it falls tenfold in each epoch from the 50th.
    """
    if course.schedule == "step":
        return course.lr * 0.1 ** (epoch // DECAY_EPOCHS)
    if course.schedule == "compounding":
        return course.lr * 0.1 ** sum(passed // DECAY_EPOCHS for passed in range(1, epoch + 1))
    if course.schedule == "cosine":
        return course.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / course.epochs))
    return course.lr


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """Sums, and so weights, change with the number of CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(
    network: nn.Module,
    losses: Callable[[torch.Generator], Iterator[Tensor]],
    course: Course,
    *,
    seed: int,
    section: str,
    resume: State | None = None,
    after_epoch: Callable[[State], None] | None = None,
    log: Callable[[int, float], None] | None = None,
) -> None:
    """Train in place and leave the network in evaluation mode.

    Args:
        network: what trains.
        losses: one epoch's losses, one an optimiser step, drawn from the generator; it is asked for the next one after
            the step on the last.
        course: epochs, rate, schedule, clipping.
        seed: of the generator.
        section: of params.yaml that states the rate, for the error.
        resume: a state that ``after_epoch`` got; training goes on after it.
        after_epoch: takes the state after each epoch: tensors and plain values.
        log: takes the epoch and its mean loss.

    Raises:
        TrainingError: a loss is no longer finite.
    """
    optimiser = torch.optim.Adam(network.parameters(), lr=course.lr)
    generator = torch.Generator().manual_seed(seed)
    first = 1
    if resume is not None:
        network.load_state_dict(resume["network"])
        optimiser.load_state_dict(resume["optimiser"])
        generator.set_state(resume["generator"])
        first = int(resume["epoch"]) + 1
    for epoch in range(first, course.epochs + 1):
        network.train()
        for group in optimiser.param_groups:
            group["lr"] = rate(course, epoch)
        total, steps = 0.0, 0
        for value in losses(generator):
            if not torch.isfinite(value):
                raise TrainingError(f"the infection segmenter's loss is not finite: lower {section}.lr")
            optimiser.zero_grad()
            value.backward()
            if course.clip_value is not None:
                nn.utils.clip_grad_value_(network.parameters(), course.clip_value)
            optimiser.step()
            total, steps = total + float(value.detach()), steps + 1
        if log is not None:
            log(epoch, total / max(1, steps))
        if after_epoch is not None:
            after_epoch(
                {
                    "epoch": epoch,
                    "network": network.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "generator": generator.get_state(),
                }
            )
    network.eval()
