"""Random views of grey pictures for contrastive learning: MoCo v2's augmentation, without what only colour has."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from chestflow.training.augmentation import crop_matrices

#: Shares of jitter in brightness and contrast, and its probability; MoCo v2.
JITTER, JITTERED = 0.4, 0.8
#: Pixels of the blur's deviation and its probability; MoCo v2, for pictures of 224 pixels.
SIGMA, BLURRED, SIGMA_SIDE = (0.1, 2.0), 0.5, 224
#: Width over height of a crop, drawn on a log scale.
RATIO = (3 / 4, 4 / 3)


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of (B, 1, H, W) by each picture's own ``sigma`` (B,) in pixels, 0 for none; edges are repeated."""
    reach = min(max(1, math.ceil(2 * float(sigma.max()))), image.shape[2] - 1, image.shape[3] - 1)
    offset = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma.to(image.dtype).clamp_min(1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    count = len(image)
    rows = F.pad(image.transpose(0, 1), (reach, reach, reach, reach), mode="replicate")  # (1, B, H + 2r, W + 2r)
    across = F.conv2d(rows, kernel[:, None, None, :], groups=count)
    return F.conv2d(across, kernel[:, None, :, None], groups=count).transpose(0, 1)


def random_view(smallest_crop: float = 0.2) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Crop of ``smallest_crop`` to all of the area, mirror, jitter of brightness and contrast, blur.

    Hue, saturation and the change to grey of the original mean nothing here. Each picture draws for itself.

    Returns:
        (float32 (B, 1, H, W) in [0, 255], generator) -> the same shape and range.
    """
    if not 0 < smallest_crop <= 1:
        raise ValueError(f"smallest_crop is {smallest_crop}; it must be above 0 and at most 1")

    def view(image: Tensor, generator: torch.Generator) -> Tensor:
        count, size = len(image), (image.shape[2], image.shape[3])

        def draw(low: float, high: float) -> Tensor:
            drawn = torch.rand(count, generator=generator, device=generator.device)
            return (low + (high - low) * drawn).to(image.device)

        area, aspect = draw(smallest_crop, 1), draw(math.log(RATIO[0]), math.log(RATIO[1])).exp()
        extent = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=1).clamp_max(1.0)
        centre = (1 - extent) * torch.stack([draw(-1, 1), draw(-1, 1)], dim=1)
        mirror = torch.stack([torch.where(draw(0, 1) < 0.5, -1.0, 1.0), torch.ones_like(area)], dim=1)
        matrices = crop_matrices(extent, centre, torch.zeros_like(area), mirror, size)
        grid = F.affine_grid(matrices, [count, 1, *size], align_corners=False)
        moved = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)

        jittered = draw(0, 1) < JITTERED
        gain, stretch = (draw(1 - JITTER, 1 + JITTER).where(jittered, 1.0)[:, None, None, None] for _ in range(2))
        bright = (moved * gain).clamp(0.0, 255.0)
        mean = bright.mean((1, 2, 3), keepdim=True)
        toned = (mean + (bright - mean) * stretch).clamp(0.0, 255.0)

        scale = min(size) / SIGMA_SIDE
        sigma = (draw(*SIGMA) * scale).where(draw(0, 1) < BLURRED, 0.0)
        return blur(toned, sigma)

    return view
