"""Inf-Net as a segmenter of slices: built from its settings, trained at several scales, asked, written and read.

Pictures are squares of the network's size, grey in [0, 255]; targets are kept as bytes, 255 for certain infection, so
that soft pseudo labels and masks take the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from chestflow.segmentation.training_loop import Course, State, fit, pinned_threads
from chestflow.training.hardware import autocast, mixed

if TYPE_CHECKING:
    from chestflow.losses.structure import Weighting
    from chestflow.nn.inf_net import InfNet, InfNetBackbone, SegmentationOutput

STRIDE = 32  # sides must be multiples of it
AT_ONCE = 16  # pictures a forward pass when predicting: bounds the memory


@dataclass(frozen=True)
class Shape:
    """What a slice network is built from."""

    backbone: InfNetBackbone = "res2net50"
    channel: int = 32
    size: int = 352
    classes: int = 1
    score_norm: bool = True
    fourth: bool = False


@dataclass(frozen=True)
class Schooling:
    """How it trains, besides its :class:`Course`."""

    batch_size: int = 24
    scales: tuple[float, ...] = (0.75, 1.0, 1.25)
    weighting: Weighting = "applied"
    flips: bool = True
    amp: str = "off"  # as ``engine.amp``


@dataclass
class SliceNetwork:
    """A network and what it was built from."""

    network: InfNet
    shape: Shape


def build(shape: Shape, seed: int = 0, weights: str | None = None) -> SliceNetwork:
    """An untrained segmenter; its initial weights follow from the seed, the backbone's from ``weights`` where given."""
    from chestflow.nn.inf_net import InfNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = InfNet(shape.backbone, shape.classes, shape.channel, weights, shape.score_norm, shape.fourth)
        return SliceNetwork(network, shape)


def scaled(size: int, scale: float) -> int:
    """The multiple of 32 nearest to ``scale * size``, at least 64: one pixel a feature has no batch statistics."""
    return max(2 * STRIDE, round(size * scale / STRIDE) * STRIDE)


def flipped(parts: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Each sample of (B, C, H, W) flipped left to right, and upside down, with one chance in two each."""
    for axis in (2, 3):
        chosen = (torch.rand(len(parts[0]), generator=generator) < 0.5).view(-1, 1, 1, 1)
        parts = [torch.where(chosen, part.flip(axis), part) for part in parts]
    return parts


def resized(parts: list[Tensor], side: int) -> list[Tensor]:
    """(B, C, S, S) at another side: grey values and masks linearly, integer labels by the nearest pixel."""
    if parts[0].shape[-1] == side:
        return parts
    return [
        functional.interpolate(part, (side, side), mode="bilinear", align_corners=False)
        if part.is_floating_point()
        else functional.interpolate(part.float(), (side, side), mode="nearest-exact").long()
        for part in parts
    ]


def loss(model: SliceNetwork, parts: list[Tensor], weighting: Weighting) -> Tensor:
    """Deep supervision of the four maps, of the edge of what is above one half, and of the kinds where there are some.

    Args:
        model: in training mode.
        parts: images (B, 1, H, W) in [0, 255], targets (B, 1, H, W) in [0, 1], and kinds (B, 1, H, W) where known.
        weighting: of the BCE.
    """
    from chestflow.losses.structure import deep_supervision_loss

    labels = parts[2][:, 0] if len(parts) > 2 else None
    return deep_supervision_loss(model.network(parts[0]), parts[1], labels=labels, weighting=weighting).total


def train(
    model: SliceNetwork,
    images: NDArray[np.uint8],
    targets: NDArray[np.uint8],
    course: Course,
    schooling: Schooling,
    *,
    seed: int,
    threads: int,
    section: str,
    kinds: NDArray[np.int8] | None = None,
    resume: State | None = None,
    after_epoch: Callable[[State], None] | None = None,
    log: Callable[[int, float], None] | None = None,
) -> None:
    """Train in place; the same seed and thread count give the same weights.

    As in Inf-Net's code, each batch is seen at every scale, with a step of the optimiser each.

    Args:
        model: new, or with the weights to go on from.
        images: (N, S, S) grey values, S = ``model.shape.size``.
        targets: (N, 1, S, S), 255 for certain infection.
        course: epochs and rate.
        schooling: batches, scales, weighting, flips and precision.
        seed: of the order and the flips.
        threads: pinned.
        section: of params.yaml, for errors.
        kinds: (N, S, S) kinds of lesion, 0 background, -1 unknown; for a network of 2 classes or more.
        resume, after_epoch, log: as in :func:`.training_loop.fit`.

    Raises:
        TrainingError: the loss is no longer finite.
    """

    def losses(generator: torch.Generator) -> Iterator[Tensor]:
        for batch in torch.randperm(len(images), generator=generator).split(schooling.batch_size):
            rows = batch.numpy()
            parts = [torch.as_tensor(images[rows])[:, None].float(), torch.as_tensor(targets[rows]).float() / 255]
            if kinds is not None:
                parts.append(torch.as_tensor(kinds[rows])[:, None].long())
            if schooling.flips:
                parts = flipped(parts, generator)
            for scale in schooling.scales:
                seen = resized(parts, scaled(model.shape.size, scale))
                with autocast(cpu, reduced):
                    value = loss(model, seen, schooling.weighting)
                yield value

    cpu = torch.device("cpu")
    reduced = mixed(cpu, schooling.amp, volumes=False)
    model.network.to(memory_format=torch.channels_last)
    with pinned_threads(threads):
        fit(
            model.network, losses, course, seed=seed, section=section,
            resume=resume, after_epoch=after_epoch, log=log,
        )  # fmt: skip
    model.network.to(memory_format=torch.contiguous_format)


@torch.no_grad()
def _answers(model: SliceNetwork, images: NDArray[np.uint8]) -> Iterator[SegmentationOutput]:
    model.network.eval()
    for first in range(0, len(images), AT_ONCE):
        yield model.network(torch.as_tensor(images[first : first + AT_ONCE])[:, None].float())


def probabilities(model: SliceNetwork, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, S, S) grey values to (N, 1, S, S) probabilities: the sigmoid of the finest map, never scaled by its range."""
    empty = np.zeros((0, 1, *images.shape[1:]), np.float32)
    return np.concatenate([empty, *(answer.probability().numpy() for answer in _answers(model, images))])


def kind_probabilities(model: SliceNetwork, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, S, S) grey values to (N, kinds, S, S): each kind of lesion where there is infection; they sum to 1.

    Raises:
        ValueError: a network without the second head.
    """
    if model.shape.classes < 2:
        raise ValueError("the network tells infection alone: train it with kinds")
    empty = np.zeros((0, model.shape.classes, *images.shape[1:]), np.float32)
    kinds = (answer.kinds for answer in _answers(model, images))
    return np.concatenate(
        [empty, *(logits[:, 1:].float().softmax(1).numpy() for logits in kinds if logits is not None)]
    )


def digest(state: Mapping[str, Tensor]) -> str:
    """Sha256 of weights: names, shapes and bytes in order of name."""
    found = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        found.update(values.numpy().tobytes())
    return found.hexdigest()
