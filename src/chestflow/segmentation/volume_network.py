"""A small 3D U-Net (MONAI's, with residual units) as a segmenter of infection in volumes, trained on patches.

Ours; the papers' volume segmenter is a closed tool. It works on a grid of its own spacing inside the lungs' box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from chestflow.data.recipes import nearest, resample
from chestflow.imaging.regions import bounding_box, grow, slices
from chestflow.segmentation.training_loop import Course, State, fit, pinned_threads
from chestflow.segmentation.volume_slices import MARGIN_MM

OVERLAP = 0.25  # of neighbouring patches when predicting


@dataclass(frozen=True)
class VolumeShape:
    """What a volume network is built from, and the grid that it works on."""

    width: int
    patch: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    window: tuple[float, float]


@dataclass
class VolumeNetwork:
    """A network and what it was built from."""

    network: nn.Module
    shape: VolumeShape


@dataclass(frozen=True)
class Region:
    """The lungs' box of a volume on the network's grid: (D, H, W) values in [-1, 1], and infection where known."""

    values: NDArray[np.float32]
    infection: NDArray[np.bool_]


def build(shape: VolumeShape, seed: int = 0) -> VolumeNetwork:
    """An untrained segmenter: one channel in, one logit per voxel out."""
    from monai.networks.nets.unet import UNet

    channels = tuple(shape.width * factor for factor in (1, 2, 4, 8))
    # not the default instance norm: it takes from a patch how dense it is as a whole
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VolumeNetwork(UNet(3, 1, 1, channels, strides=(2, 2, 2), num_res_units=1, norm="batch"), shape)


def place_of(lung: NDArray[np.bool_], spacing: tuple[float, float, float]) -> tuple[slice, ...]:
    """The lungs' box with a margin, as an index.

    Raises:
        ValueError: there are none.
    """
    if not lung.any():
        raise ValueError("a volume without lungs has no box to look into")
    margin = max(1, round(MARGIN_MM / min(spacing)))
    return slices(grow(bounding_box(lung), margin, lung.shape))


def region(
    hu: NDArray[np.int16],
    spacing: tuple[float, float, float],
    lung: NDArray[np.bool_],
    shape: VolumeShape,
    infection: NDArray[np.bool_] | None = None,
) -> Region:
    """What the network sees of a volume; unknown infection is none."""
    place = place_of(lung, spacing)
    low, high = shape.window
    values = np.clip((hu[place].astype(np.float32) - low) / (high - low), 0, 1) * 2 - 1
    grid = values.shape
    if shape.spacing_mm is not None:
        steps = zip(values.shape, spacing, shape.spacing_mm, strict=True)
        grid = tuple(max(1, round(count * mm / target)) for count, mm, target in steps)
    mask = np.zeros(grid, bool) if infection is None else nearest(infection[place], grid)
    return Region(resample(values, grid), mask)


def padded(values: NDArray, patch: tuple[int, ...], fill: float) -> NDArray:
    """(D, H, W) with ``fill`` added behind each axis that is shorter than a patch."""
    more = [(0, max(0, need - side)) for side, need in zip(values.shape, patch, strict=True)]
    return np.pad(values, more, constant_values=fill)


def patches(part: Region, shape: VolumeShape, count: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """``count`` random patches of a region and its infection, each (1, d, h, w); every second one around infection."""
    values, mask = padded(part.values, shape.patch, -1.0), padded(part.infection, shape.patch, 0)
    inside = np.argwhere(mask)
    made = []
    for number in range(count):
        free = [side - size for side, size in zip(values.shape, shape.patch, strict=True)]
        start = [int(torch.randint(0, most + 1, (), generator=generator)) for most in free]
        if number % 2 == 0 and len(inside):
            middle = inside[int(torch.randint(0, len(inside), (), generator=generator))]
            start = [
                int(min(max(at - size // 2, 0), most)) for at, size, most in zip(middle, shape.patch, free, strict=True)
            ]
        index = tuple(slice(first, first + size) for first, size in zip(start, shape.patch, strict=True))
        made.append((torch.from_numpy(values[index].copy())[None], torch.from_numpy(mask[index].copy())[None].float()))
    return made


def loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross entropy plus one minus the mean of the patches' soft Dice, in which a small lesion counts as much as a
    large one; finite for empty masks. Both (B, 1, D, H, W).
    """
    probability, each = logits.sigmoid(), (1, 2, 3, 4)
    dice = (2 * (probability * masks).sum(each) + 1) / (probability.sum(each) + masks.sum(each) + 1)
    return functional.binary_cross_entropy_with_logits(logits, masks) + (1 - dice).mean()


def train(
    model: VolumeNetwork,
    regions: list[Region],
    course: Course,
    *,
    per_volume: int,
    batch_size: int,
    seed: int,
    threads: int,
    section: str,
    resume: State | None = None,
    after_epoch: Callable[[State], None] | None = None,
    log: Callable[[int, float], None] | None = None,
) -> None:
    """Train in place on random patches, flipped left to right at random; the same seed gives the same weights.

    Raises:
        TrainingError: the loss is no longer finite.
    """

    def losses(generator: torch.Generator) -> Iterator[Tensor]:
        order = torch.randperm(len(regions), generator=generator)
        together = max(1, batch_size // per_volume)
        for chosen in order.split(together):
            drawn = [pair for row in chosen for pair in patches(regions[int(row)], model.shape, per_volume, generator)]
            for first in range(0, len(drawn), batch_size):
                values, masks = (torch.stack(part) for part in zip(*drawn[first : first + batch_size], strict=True))
                if torch.rand((), generator=generator) < 0.5:
                    values, masks = values.flip(-1), masks.flip(-1)
                yield loss(model.network(values), masks)

    model.network.to(memory_format=torch.channels_last_3d)  # more than twice as fast on CPUs
    with pinned_threads(threads):
        fit(
            model.network, losses, course, seed=seed, section=section,
            resume=resume, after_epoch=after_epoch, log=log,
        )  # fmt: skip
    model.network.to(memory_format=torch.contiguous_format)


@torch.no_grad()
def probability(
    model: VolumeNetwork, hu: NDArray[np.int16], spacing: tuple[float, float, float], lung: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """(D, H, W) probabilities on the volume's own grid, 0 outside the lungs' box."""
    from monai.inferers.utils import sliding_window_inference

    whole = np.zeros(hu.shape, np.float32)
    if not lung.any():
        return whole
    place = place_of(lung, spacing)
    values = region(hu, spacing, lung, model.shape).values
    seen = torch.from_numpy(padded(values, model.shape.patch, -1.0))[None, None]
    model.network.eval()
    logits = sliding_window_inference(seen, model.shape.patch, 4, model.network, OVERLAP, mode="gaussian")
    assert isinstance(logits, Tensor)
    inside = tuple(slice(0, side) for side in values.shape)
    whole[place] = resample(logits.sigmoid()[0, 0].numpy()[inside], whole[place].shape)
    return whole
