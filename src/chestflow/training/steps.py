"""The steps of one epoch: micro-batches, loss, gradients, their finiteness, the optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from chestflow.errors import TrainingError
from chestflow.training.distributed import World, without_sync
from chestflow.training.hardware import autocast, seed_of
from chestflow.training.loader import Raw, Reader
from chestflow.training.phases import Phase


@dataclass
class Course:
    """Where a training stands; phase, epoch and step say how many of each are done.

    Attributes:
        sums: of the epoch's losses, each weighted by its batch's samples, of which there were ``samples``.
        best_value: of the phase's monitor; ``best_epoch`` counts from 1.
        best_weights: the network's state then, on the CPU.
        epochs: the rows of history.csv so far, of all phases.
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    best_value: float | None = None
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def generator(self, seed: int, purpose: str, rank: int = 0) -> torch.Generator:
        """The generator of this place in the training; it depends on nothing that happened before."""
        return torch.Generator().manual_seed(seed_of(seed, self.phase, self.epoch, self.step, purpose, rank))


@dataclass(frozen=True)
class Stepper:
    """Trains ``model`` (the network, or its DDP form) by one phase."""

    phase: Phase
    model: nn.Module
    parameters: list[nn.Parameter]
    optimiser: torch.optim.Optimizer
    reader: Reader
    device: torch.device
    amp: bool
    world: World
    seed: int

    def epoch(self, course: Course, order: list[Sequence[int]]) -> Iterator[int]:
        """The steps of ``order`` that remain; yields the number of samples of each.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        plan = [shares(positions, micro_size(self.phase), self.world) for positions in order]
        # a step that is counted first waits for all of its micro-batches, so the next one's are read meanwhile
        depth = max(2, *map(len, plan)) if self._counts() else 2
        stream = self.reader.raws((chunk for step in plan[course.step :] for chunk, _ in step), depth)
        try:
            for positions, step in zip(order[course.step :], plan[course.step :], strict=True):
                parts = self._step(course, step, stream)
                for name, value in parts.items():
                    course.sums[name] = course.sums.get(name, 0.0) + value * len(positions)
                course.samples += len(positions)
                course.step += 1
                yield len(positions)
        finally:
            stream.close()  # type: ignore[attr-defined]

    def _counts(self) -> bool:
        """Whether a loss must be told of the step's other batches; the same in all processes."""
        return self.phase.counts is not None and (self.phase.accumulate > 1 or self.world.size > 1)

    def _counted(self, raws: list[Raw], step: list[tuple[list[int], float]]) -> Tensor:
        """What the phase counts in the whole step, over its micro-batches and all processes."""
        assert self.phase.counts is not None
        total = torch.zeros((), device=self.device)
        for raw, (_, weight) in zip(raws, step, strict=True):
            if weight:
                total += self.phase.counts(self.reader.finish(raw))
        return self.world.total(total)

    def _step(self, course: Course, step: list[tuple[list[int], float]], stream: Iterator[Raw]) -> dict[str, float]:
        """One step over its micro-batches; the losses' means over the samples of all processes."""
        generator = course.generator(self.seed, "step", self.world.rank)
        torch.manual_seed(seed_of(generator.initial_seed(), "dropout"))
        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        raws: Iterable[Raw] = (next(stream) for _ in step)
        counted = None
        if self._counts():
            raws = list(raws)  # as they lie in the pack, in the host's memory
            counted = self._counted(raws, step)
        for place, (raw, (_, weight)) in enumerate(zip(raws, step, strict=True)):
            batch = self.reader.finish(raw)
            if self.phase.augment is not None:
                batch = self.phase.augment(batch, generator)
            if counted is not None and weight:
                batch = replace(batch, counted=counted, share=weight)
            with without_sync(self.model, last=place == len(step) - 1):
                with autocast(self.device, self.amp):
                    parts = self.phase.loss(self.model, batch, generator)
                (parts["loss"] * (weight * self.world.size)).backward()  # DDP takes the mean over processes
            for name, value in parts.items():
                share = value.detach().float() * weight
                sums[name] = sums[name] + share if name in sums else share
        names = sorted(sums)
        norm = self._clip()
        means = self.world.total(torch.stack([sums[name] for name in names]))
        *values, length = torch.cat([means, norm.detach().float().view(1)]).tolist()  # one wait for the device
        found = dict(zip(names, values, strict=True))
        if not (math.isfinite(found["loss"]) and math.isfinite(length)):
            raise self._not_finite(course, found["loss"])
        self.optimiser.step()
        return found

    def _clip(self) -> Tensor:
        """The norm of all gradients, taken before they are clipped."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.phase.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.phase.clip_norm, norm)
        return norm.to(self.device)

    def _not_finite(self, course: Course, loss: float) -> TrainingError:
        what = "a gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
        place = f"phase {self.phase.name}, epoch {course.epoch + 1}, step {course.step + 1}"
        advice = "turn mixed precision off (engine.amp: off), or" if self.amp else "look for NaN in the data, or"
        return TrainingError(f"{what} in {place}: {advice} lower lr or set clip_norm in the run's config")


def micro_size(phase: Phase) -> int:
    """Samples of a micro-batch over all processes."""
    return -(-phase.batch_size // phase.accumulate)


def shares(positions: Sequence[int], micro: int, world: World) -> list[tuple[list[int], float]]:
    """This process's micro-batches of a step, each with its share of the step's samples.

    A single sample left over joins the micro-batch before it, for batch norm. With fewer samples than processes, those
    without one take the first with weight 0, since DDP waits for all of them.
    """
    mine = list(positions)[world.rank :: world.size]
    if not mine:
        return [(list(positions[:1]), 0.0)]
    size = max(1, -(-micro // world.size))
    chunks = [mine[i : i + size] for i in range(0, len(mine), size)]
    if len(chunks) > 1 and len(chunks[-1]) == 1 and size > 1:
        chunks[-2:] = [chunks[-2] + chunks[-1]]
    return [(chunk, len(chunk) / len(positions)) for chunk in chunks]
