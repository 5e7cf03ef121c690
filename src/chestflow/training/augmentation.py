"""Random augmentation of whole batches on their device; masks move with the images.

Every draw comes from the given generator, so that a resumed run sees the same pictures as an uninterrupted one.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from chestflow.training.phases import Augmentation, Batch


def _uniform(count: int, low: float, high: float, generator: torch.Generator, like: Tensor) -> Tensor:
    drawn = torch.rand(count, generator=generator, device=generator.device)
    return (low + (high - low) * drawn).to(like.device)


def affine_matrices(angle: Tensor, scale: Tensor, shift: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """Matrices (B, 2, 3) for ``affine_grid`` that rotate by ``angle`` (radians), enlarge by ``scale``, shift by
    ``shift`` (B, 2: x and y as shares of the width and height) and mirror left and right where ``flip`` is -1.

    The grid's units are half widths and half heights, so the rotation is corrected for the aspect ratio: a circle
    stays a circle in a picture that is not square.
    """
    height, width = size
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    top = torch.stack([flip * cos, -sin * height / width, -2 * shift[:, 0]], dim=1)
    bottom = torch.stack([flip * sin * width / height, cos, -2 * shift[:, 1]], dim=1)
    return torch.stack([top, bottom], dim=1)


def random_affine(
    *, flip: float = 0.5, degrees: float = 10.0, translate: float = 0.05, scale: float = 0.1, brightness: float = 0.1
) -> Augmentation:
    """Mirror with probability ``flip``, rotate within +- ``degrees``, shift within +- ``translate`` of the side,
    enlarge within 1 +- ``scale``, and multiply grey values within 1 +- ``brightness``. No vertical mirror.

    Images are interpolated linearly and masks by the nearest pixel; what comes from outside is 0.
    """

    def augment(batch: Batch, generator: torch.Generator) -> Batch:
        image = batch.image
        count, size = len(image), (image.shape[2], image.shape[3])
        mirrored = torch.where(_uniform(count, 0, 1, generator, image) < flip, -1.0, 1.0)
        radians = math.radians(degrees)
        angle = _uniform(count, -radians, radians, generator, image)
        larger = _uniform(count, 1 - scale, 1 + scale, generator, image)
        shift = _uniform(2 * count, -translate, translate, generator, image).view(count, 2)
        gain = _uniform(count, 1 - brightness, 1 + brightness, generator, image)
        matrices = affine_matrices(angle, larger, shift, mirrored, size)
        grid = F.affine_grid(matrices, [count, 1, *size], align_corners=False)
        moved = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        moved = (moved * gain[:, None, None, None]).clamp(0.0, 255.0)

        def move_mask(mask: Tensor | None) -> Tensor | None:
            if mask is None:
                return None
            return F.grid_sample(mask, grid, mode="nearest", padding_mode="zeros", align_corners=False)

        return replace(batch, image=moved, lung=move_mask(batch.lung), infection=move_mask(batch.infection))

    return augment


def random_mirror(probability: float = 0.5) -> Augmentation:
    """Mirror left and right (the last axis) with ``probability``, each sample by itself."""

    def augment(batch: Batch, generator: torch.Generator) -> Batch:
        chosen = _uniform(len(batch.image), 0, 1, generator, batch.image) < probability

        def mirror(x: Tensor) -> Tensor:
            return torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)

        lung = None if batch.lung is None else mirror(batch.lung)
        infection = None if batch.infection is None else mirror(batch.infection)
        return replace(batch, image=mirror(batch.image), lung=lung, infection=infection)

    return augment
