"""The fit loop: runs the phases of any method, can be killed at any step, and gives the same weights every time.

All randomness of a step comes from a seed made of the run's seed and the step's place (phase, epoch, step, process),
never from a stream that an interruption could lose. A checkpoint therefore holds weights, optimiser, schedule and the
:class:`~chestflow.training.steps.Course`, and that is all it takes to go on bit by bit.

Several GPUs: ``torchrun --nproc-per-node 4 stages/train.py RUN FOLD`` (see :mod:`chestflow.training.distributed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import nn

from chestflow.errors import ConfigError
from chestflow.training import checkpoints, distributed, history, monitors
from chestflow.training.distributed import World
from chestflow.training.hardware import choose_device, make_reproducible, mixed, seed_of
from chestflow.training.inference import infer
from chestflow.training.loader import PackLike, Reader
from chestflow.training.phases import Phase, apply_freezing, drop
from chestflow.training.progress import Progress
from chestflow.training.steps import Course, Stepper, micro_size


class Log(Protocol):
    """Where the metrics of an epoch go."""

    def metrics(self, values: dict[str, float], step: int) -> None: ...


class Settings(Protocol):
    """The ``engine`` section of params.yaml."""

    device: str
    amp: Any
    threads: int
    checkpoint_every: int | None


@dataclass(frozen=True)
class Data:
    """A pack and which of its rows train and tune: tables with columns row, target, ratio."""

    pack: PackLike
    train: pd.DataFrame
    tune: pd.DataFrame


@dataclass(frozen=True)
class FitResult:
    """A finished training.

    Attributes:
        network: with the best weights of the last phase.
        epochs: the rows of history.csv.
        best: of each phase, its name, its best epoch and its monitor's value there.
        device, amp, world: where and how it ran.
    """

    network: nn.Module
    epochs: list[dict[str, Any]]
    best: list[dict[str, Any]]
    device: torch.device
    amp: bool
    world: World


def fit(
    network: nn.Module,
    phases: Sequence[Phase],
    data: Data,
    settings: Settings,
    *,
    seed: int,
    folder: Path,
    log: Log | None = None,
) -> FitResult:
    """Run ``phases`` in order, each from the best weights of the one before; go on where ``folder`` says.

    Args:
        network: with its first weights; training may change its parameters and buffers and nothing else.
        folder: of the checkpoint; whoever calls clears it once the results are written.

    Raises:
        ConfigError: the device is not there, or ``engine.amp`` is not for it.
        TrainingError: a loss or gradient is not finite; the message names where and what may help.
    """
    make_reproducible(settings.threads)
    device = choose_device(settings.device)
    world = distributed.enter(device.type)
    amp = mixed(device, settings.amp, volumes=data.pack.data.ndim == 4)
    network.to(device)
    if data.pack.data.ndim == 3:
        network.to(memory_format=torch.channels_last)
    if world.size > 1 and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    loop = _Loop(network, data, settings, seed, folder, device, world, amp, log)
    saved = checkpoints.load(folder)
    course = Course(**saved["course"]) if saved else Course()
    for done in phases[: course.phase]:
        drop(network, done.drops)
    while course.phase < len(phases):
        loop.run(phases[course.phase], course, saved)
        course, saved = Course(phase=course.phase + 1, epochs=course.epochs), None
    best = {row["phase"]: row for row in course.epochs if row["best"]}  # the last improvement of each phase
    monitored = [
        {"phase": p.name, "epoch": best[p.name]["epoch"], p.monitor: best[p.name][f"tune_{p.monitor}"]} for p in phases
    ]
    return FitResult(network, course.epochs, monitored, device, amp, world)


@dataclass(frozen=True)
class _Loop:
    network: nn.Module
    data: Data
    settings: Settings
    seed: int
    folder: Path
    device: torch.device
    world: World
    amp: bool
    log: Log | None

    def run(self, phase: Phase, course: Course, saved: dict[str, Any] | None) -> None:
        """One phase: prepare, epochs of steps each with a look at the tune role, and back to the best weights."""
        if phase.mixes_samples and (self.world.size > 1 or phase.accumulate > 1):
            raise ConfigError(
                f"phase {phase.name} compares the samples of a batch with each other: train it in one process, without"
                " torchrun and with accumulate 1"
            )
        reader = Reader(self.data.pack, self.data.train, self.device)
        drop(self.network, phase.drops)
        if saved:
            self.network.load_state_dict(saved["network"])
        parameters = apply_freezing(self.network, phase)
        if phase.prepare is not None and not saved:
            self._prepare(phase, course, reader)
        optimiser = phase.optimiser(parameters)
        schedule = phase.schedule(optimiser) if phase.schedule else None
        if saved:
            optimiser.load_state_dict(saved["optimiser"])
            if schedule:
                schedule.load_state_dict(saved["schedule"])
        model = self.world.wrap(self.network, self.device)
        how = (self.device, self.amp, self.world, self.seed)
        stepper = Stepper(phase, model, parameters, optimiser, reader, *how)
        progress = Progress(phase.epochs - course.epoch, silent=self.world.rank > 0)
        try:
            while course.epoch < phase.epochs and not _exhausted(phase, course):
                apply_freezing(self.network, phase)
                shuffling = Course(course.phase, course.epoch).generator(self.seed, "order")
                order = list(phase.sampler(self.data.train, phase.batch_size, shuffling))
                progress.begin(f"{phase.name} {course.epoch + 1}/{phase.epochs}", len(order), course.step)
                for samples in stepper.epoch(course, order):
                    progress.step(samples)
                    every = self.settings.checkpoint_every
                    if every and course.step % every == 0 and course.step < len(order):
                        self._checkpoint(phase, course, optimiser, schedule)
                row = self._close_epoch(phase, course, optimiser.param_groups[0]["lr"])
                if schedule:
                    schedule.step()
                self._checkpoint(phase, course, optimiser, schedule)
                progress.end(history.summary(row, phase.epochs, phase.monitor))
        finally:
            progress.close()
        self.network.load_state_dict(course.best_weights)

    def _prepare(self, phase: Phase, course: Course, reader: Reader) -> None:
        assert phase.prepare is not None
        torch.manual_seed(seed_of(self.seed, course.phase, "prepare"))
        order = torch.randperm(len(self.data.train), generator=course.generator(self.seed, "prepare"))
        batches = reader.batches(chunk.tolist() for chunk in order.split(micro_size(phase)))
        try:
            phase.prepare(self.network, batches)
        finally:
            batches.close()  # type: ignore[attr-defined]
        apply_freezing(self.network, phase)

    def _close_epoch(self, phase: Phase, course: Course, lr: float) -> dict[str, Any]:
        """Measure the tune role, keep the weights if they are the best yet, and log the epoch."""
        self.world.share_buffers(self.network)
        tune = self.data.tune
        found = infer(
            self.network,
            self.data.pack,
            tune["row"].to_numpy(),
            device=self.device,
            batch_size=micro_size(phase),
            amp=self.amp,
            world=self.world,
        )
        target = tune["target"].to_numpy()
        measured = phase.measure(found, target) if phase.measure else monitors.tune_metrics(found.logits, target)
        course.epoch += 1
        is_best = monitors.better(phase.monitor, measured[phase.monitor], course.best_value)
        if is_best:
            course.best_value, course.best_epoch = measured[phase.monitor], course.epoch
            course.best_weights = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
        row = {"phase": phase.name, "epoch": course.epoch, "lr": float(lr), "best": is_best}
        row |= {f"train_{name}": value / course.samples for name, value in sorted(course.sums.items())}
        row |= {f"tune_{name}": value for name, value in measured.items()}
        course.epochs.append(row)
        course.step, course.sums, course.samples = 0, {}, 0
        if self.log is not None and self.world.rank == 0:
            self.log.metrics(history.metrics(row), len(course.epochs))
        return row

    def _checkpoint(
        self,
        phase: Phase,
        course: Course,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler | None,
    ) -> None:
        if self.world.rank:
            return
        state = {
            "network": self.network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict() if schedule else None,
            "course": dict(course.__dict__),
        }
        checkpoints.save(self.folder, state, {"phase": phase.name, "epoch": course.epoch, "step": course.step})


def _exhausted(phase: Phase, course: Course) -> bool:
    return phase.patience is not None and course.epoch > 0 and course.epoch - course.best_epoch >= phase.patience
