"""Algorithm 1 of paper 003: unlabelled slices get masks from the network that they then help to train.

M trains on the doctors' slices; each round then labels ``chunk`` random slices that have no label yet, and M trains on,
from where it was, with these among its slices. Of N slices there are ceil(N / chunk) rounds, and every slice is
labelled once. What the last round labels is not trained on any more, as the algorithm has it; the published code ends
otherwise, by training anew on all pseudo labels and then on the doctors' alone (``final: pretrain_finetune``).

A pseudo label is where the probability is above one half. The published code scales each prediction by its own range
instead, which makes infection of the noise on a healthy slice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chestflow.data.references import LESIONS
from chestflow.files import atomic_path
from chestflow.segmentation import slice_network
from chestflow.segmentation.slice_network import Schooling, Shape, SliceNetwork
from chestflow.segmentation.training_loop import Course, State
from chestflow.training import checkpoints

if TYPE_CHECKING:
    from chestflow.config_segmentation import InfectionSlices

BINS = 10  # of the confidence histogram, over [0.5, 1]
Log = Callable[[str, dict[str, float], int], None]
Measure = Callable[[SliceNetwork], dict[str, float]]


@dataclass(frozen=True)
class Slices:
    """Labelled slices.

    Attributes:
        images: (N, S, S) grey values.
        targets: (N, 1, S, S), 255 for certain infection.
        kinds: (N, S, S) kinds of lesion, 0 background, -1 unknown; None where only infection is known.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.uint8]
    kinds: NDArray[np.int8] | None = None


@dataclass
class Labelled:
    """What the loop ends with.

    Attributes:
        model: the network after its last training.
        targets: (N, 1, S, S) pseudo labels in the order of the pool; 255 for certain infection.
        round_of: (N,) the round that labelled each, counted from 1.
        rounds: for each round its slices, training set size, model hash, Dice on held slices, confidences.
    """

    model: SliceNetwork
    targets: NDArray[np.uint8]
    round_of: NDArray[np.int64]
    rounds: list[dict[str, Any]] = field(default_factory=list)


def draw_rounds(count: int, chunk: int, seed: int) -> list[NDArray[np.int64]]:
    """Which of ``count`` slices each round labels: disjoint, all of them together, in an order of the seed."""
    order = np.random.default_rng(seed).permutation(count)
    return [order[first : first + chunk] for first in range(0, count, chunk)]


def pseudo_targets(probability: NDArray[np.float32], threshold: float, soft: bool) -> NDArray[np.uint8]:
    """Probabilities to bytes: themselves where soft, else 255 above the threshold; no scaling by their range."""
    if soft:
        return np.rint(probability * 255).astype(np.uint8)
    return (probability > threshold).astype(np.uint8) * np.uint8(255)


def confidence(probability: NDArray[np.float32]) -> list[int]:
    """Pixels by max(p, 1 - p), in ten bins over [0.5, 1]."""
    counts, _ = np.histogram(np.maximum(probability, 1 - probability), bins=BINS, range=(0.5, 1.0))
    return [int(count) for count in counts]


def fingerprint(*arrays: NDArray) -> str:
    """Sha256 of arrays' shapes and bytes: whether an interrupted training was on the same data."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.shape} {array.dtype}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


class Loop:
    """The loop's trainings and rounds in order; each step ends with a state from which the next one goes on.

    Args:
        doctors: labelled slices; with kinds the network gets the second head.
        pool: (N, S, S) unlabelled slices, in an order that does not depend on the file system.
        settings: ``infection.ct_slice`` of params.yaml.
        seed: of the weights, the rounds and the trainings.
        threads: CPU threads, pinned.
        folder: where an interrupted loop goes on from; None keeps nothing.
        measure: the network's Dice, and other figures, on slices that it does not learn from.
        log: takes (what, figures, step), for a tracker.
        section: of params.yaml that holds the settings, for errors.
    """

    def __init__(
        self,
        doctors: Slices,
        pool: NDArray[np.uint8],
        settings: InfectionSlices,
        *,
        seed: int,
        threads: int,
        folder: Path | None = None,
        measure: Measure | None = None,
        log: Log | None = None,
        section: str = "infection.ct_slice",
    ) -> None:
        self.doctors, self.pool, self.settings = doctors, pool, settings
        self.seed, self.threads, self.folder = seed, threads, folder
        self.measure, self.log, self.section = measure, log, section
        classes = 1 if doctors.kinds is None else len(LESIONS)
        self.shape = Shape(
            settings.backbone, settings.channel, settings.size, classes, settings.score_norm, settings.fourth
        )
        self.chunks = draw_rounds(len(pool), settings.pseudo.chunk, seed)
        self.labels: list[NDArray[np.uint8]] = []
        self.records: list[dict[str, Any]] = []
        self.model = slice_network.build(self.shape, seed, settings.weights)

    def run(self) -> Labelled:
        """Train and label; interrupted and started again with the same folder, the result is the same."""
        state = self._restore()
        at, within = (int(state["step"]), state["training"]) if state else (0, None)
        steps = self._steps()
        for step in range(at, len(steps)):
            self._train(step, steps[step], within)
            within = None
            if step < len(self.chunks):
                self._label(step)
            self._save(step + 1, None)
        self.model.network.eval()
        targets = np.zeros((len(self.pool), *self.doctors.targets.shape[1:]), np.uint8)
        round_of = np.zeros(len(self.pool), np.int64)
        for number, (chunk, labels) in enumerate(zip(self.chunks, self.labels, strict=True), 1):
            targets[chunk], round_of[chunk] = labels, number
        return Labelled(self.model, targets, round_of, self.records)

    def done(self) -> None:
        """Remove the state and the rounds' files: the result is written."""
        if self.folder is not None:
            for file in self.folder.glob("round-*.npy"):
                file.unlink()
            checkpoints.clear(self.folder)

    def _steps(self) -> list[str]:
        """What each training is: one before each round, at least one, and the two of the code's final stage."""
        steps = ["first", *["round"] * (len(self.chunks) - 1)]
        if self.chunks and self.settings.pseudo.final == "pretrain_finetune":
            steps += ["pretrain", "finetune"]
        return steps

    def _train(self, step: int, what: str, resume: State | None) -> None:
        whole, pseudo = self.settings, self.settings.pseudo
        course = Course(whole.epochs, whole.lr, whole.schedule, whole.clip_value)
        batch = whole.batch_size
        data = self.doctors
        if what == "round":
            course, batch = Course(pseudo.epochs, pseudo.lr, whole.schedule, whole.clip_value), pseudo.batch_size
            data = self._joined([self.doctors], len(self.labels))
        elif what == "pretrain":
            data = self._joined([], len(self.labels))
            if resume is None:
                self.model = slice_network.build(self.shape, self.seed, self.settings.weights)
        slice_network.train(
            self.model,
            data.images,
            data.targets,
            course,
            Schooling(batch, tuple(whole.scales), whole.weighting, whole.flips, whole.amp),
            seed=self.seed + step,
            threads=self.threads,
            kinds=data.kinds,
            section=self.section if what != "round" else f"{self.section}.pseudo",
            resume=resume,
            after_epoch=(lambda state: self._save(step, state)) if self.folder is not None else None,
            log=self._logger(f"training {step}: {what}"),
        )

    def _joined(self, parts: list[Slices], rounds: int) -> Slices:
        """The parts, and what the first rounds labelled: infection, and no kinds."""
        chunks = [self.pool[chunk] for chunk in self.chunks[:rounds]]
        images = np.concatenate([*[part.images for part in parts], *chunks])
        targets = np.concatenate([*[part.targets for part in parts], *self.labels[:rounds]])
        if self.doctors.kinds is None:
            return Slices(images, targets)
        known = [part.kinds for part in parts if part.kinds is not None]
        unknown = np.full((sum(map(len, chunks)), *images.shape[1:]), -1, np.int8)
        return Slices(images, targets, np.concatenate([*known, unknown]))

    def _label(self, step: int) -> None:
        chunk, pseudo = self.chunks[step], self.settings.pseudo
        probability = slice_network.probabilities(self.model, self.pool[chunk])
        labels = pseudo_targets(probability, pseudo.threshold, pseudo.soft_targets)
        figures = self.measure(self.model) if self.measure is not None else {}
        if self.folder is not None:
            with atomic_path(self.folder / f"round-{step:04d}.npy") as temporary, open(temporary, "wb") as stream:
                np.save(stream, labels)
        record = {
            "round": step + 1,
            "labelled": len(chunk),
            "trained_on": len(self.doctors.images) + sum(len(earlier) for earlier in self.chunks[:step]),
            "model": slice_network.digest(self.model.network.state_dict()),
            "held": figures,
            "confidence": confidence(probability),
            "empty": int((~(probability > pseudo.threshold).any((1, 2, 3))).sum()),
        }
        self.labels.append(labels)
        self.records.append(record)
        if self.log is not None:
            self.log("pseudo-label round", figures, step + 1)

    def _logger(self, what: str) -> Callable[[int, float], None] | None:
        log = self.log
        return None if log is None else lambda epoch, value: log(what, {"loss": value}, epoch)

    def _save(self, step: int, training: State | None) -> None:
        if self.folder is None:
            return
        network = self.model.network.state_dict() if training is None else None  # a training's state holds its own
        kept = {"step": step, "training": training, "network": network, "records": self.records}
        checkpoints.save(self.folder, kept, {"step": step, "epoch": training["epoch"] if training else 0})

    def _restore(self) -> State | None:
        state = checkpoints.load(self.folder) if self.folder is not None else None
        if state is None or self.folder is None:
            return None
        files = [self.folder / f"round-{number:04d}.npy" for number in range(len(state["records"]))]
        if not all(file.exists() for file in files):
            checkpoints.clear(self.folder)
            return None
        self.labels = [np.load(file, allow_pickle=False) for file in files]
        self.records = list(state["records"])
        if state["network"] is not None:
            self.model.network.load_state_dict(state["network"])
        return state


def names_by_round(names: Sequence[str], labelled: Labelled) -> dict[str, dict[str, Any]]:
    """image_id -> the round and the hash of the model that labelled it."""
    return {
        name: {"round": int(number), "model": labelled.rounds[int(number) - 1]["model"]}
        for name, number in zip(names, labelled.round_of, strict=True)
    }
