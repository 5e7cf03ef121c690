"""Lungs on X-rays: a small U-Net (MONAI's, with residual units), trained on images whose source gives lung masks.

Ours; the papers' lung masks come from closed tools. It works on a square of ``size`` pixels and answers on the image's
own grid.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from chestflow.data.recipes import resize_plane
from chestflow.errors import TrainingError
from chestflow.files import atomic_path
from chestflow.imaging.regions import largest_components

if TYPE_CHECKING:
    from chestflow.config import CxrLungs

SECOND_LUNG = 0.1  # a second part below this share of the first is not a lung


@dataclass
class LungSegmenter:
    """A network and the side of the square it works on."""

    network: nn.Module
    size: int
    width: int


def build(size: int, width: int) -> LungSegmenter:
    """An untrained segmenter: one grey channel in, one logit per pixel out."""
    from monai.networks.nets.unet import UNet

    # the first convolution halves the picture: four times as fast as a U-Net that starts at full size
    channels = (width, 2 * width, 4 * width, 8 * width, 8 * width)
    network = UNet(2, 1, 1, channels, strides=(2, 2, 2, 2), num_res_units=1)
    return LungSegmenter(network, size, width)


def standardise(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """(B, S, S) grey values to (B, 1, S, S) with zero mean and unit deviation per image."""
    values = torch.as_tensor(images).float()[:, None]
    deviation, mean = torch.std_mean(values, dim=(2, 3), keepdim=True, correction=0)
    return (values - mean) / deviation.clamp_min(1.0)


def augment(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random flip, turn of up to 10 degrees, 15% of scale, 8% of shift; contrast and brightness; ours.

    Args:
        images: (B, 1, S, S), standardised.
        masks: (B, 1, S, S) in {0, 1}.
        generator: source of all randomness.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(len(images), generator=generator) * (high - low) + low

    angle, scale = uniform(-math.pi / 18, math.pi / 18), uniform(0.85, 1.15)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    rows = [torch.stack([scale * flip * angle.cos(), -scale * angle.sin(), uniform(-0.08, 0.08)], 1)]
    rows.append(torch.stack([scale * flip * angle.sin(), scale * angle.cos(), uniform(-0.08, 0.08)], 1))
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    gain, bias = uniform(0.7, 1.3).view(-1, 1, 1, 1), uniform(-0.3, 0.3).view(-1, 1, 1, 1)
    images = functional.grid_sample(images, grid, align_corners=False, padding_mode="border") * gain + bias
    masks = functional.grid_sample(masks, grid, align_corners=False, mode="nearest")
    return images, masks


def loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross entropy plus one minus the soft Dice of each image; finite for empty masks."""
    probability = logits.sigmoid()
    both = (probability * masks).sum((1, 2, 3))
    dice = (2 * both + 1) / (probability.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + 1)
    return functional.binary_cross_entropy_with_logits(logits, masks) + (1 - dice).mean()


def train(
    images: NDArray[np.uint8], masks: NDArray[np.bool_], settings: CxrLungs, *, seed: int, threads: int
) -> LungSegmenter:
    """Train a segmenter; the same seed and thread count give the same weights.

    Args:
        images: (N, S, S) grey values, S = ``settings.size``.
        masks: (N, S, S).
        settings: epochs, width, rate and batch size.
        seed: of the initial weights, the order and the augmentation.
        threads: pinned, since sums, and so weights, change with it.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(settings.size, settings.width)
        generator = torch.Generator().manual_seed(seed)
        x, y = standardise(images), torch.as_tensor(masks)[:, None].float()
        optimiser = torch.optim.AdamW(model.network.parameters(), lr=settings.lr)
        steps = settings.epochs * math.ceil(len(x) / settings.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        model.network.train()
        for _ in range(settings.epochs):
            for batch in torch.randperm(len(x), generator=generator).split(settings.batch_size):
                seen, truth = augment(x[batch], y[batch], generator)
                value = loss(model.network(seen), truth)
                if not torch.isfinite(value):
                    raise TrainingError("the lung segmenter's loss is not finite: lower segment.cxr_lungs.lr")
                optimiser.zero_grad()
                value.backward()
                nn.utils.clip_grad_norm_(model.network.parameters(), 5.0)
                optimiser.step()
                schedule.step()
        model.network.eval()
        return model
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def probabilities(model: LungSegmenter, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(B, S, S) grey values to (B, S, S) probabilities of lung; S is the model's size."""
    parts = np.array_split(images, -(-len(images) // 32))  # 32 at a time bounds the memory
    return np.concatenate([model.network(standardise(part)).sigmoid()[:, 0].numpy() for part in parts])


def outline(probability: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The two largest regions above one half, on a grid of ``shape``; all False where there is none."""
    kept = np.zeros(probability.shape, dtype=bool)
    for part in largest_components(probability > 0.5, 2, SECOND_LUNG):
        kept |= part
    # what was dropped falls to just below one half, so that the linear steps keep the outline where it was
    cleaned = np.where(kept, probability, np.minimum(probability, 0.49)).astype(np.float32)
    return resize_plane(cleaned, shape) > 0.5


def predict(model: LungSegmenter, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Lung mask of one X-ray.

    Args:
        model: trained.
        image: (H, W) grey values in [0, 255], bright = dense.

    Returns:
        (H, W).
    """
    small = resize_plane(image, (model.size, model.size))
    return outline(probabilities(model, small[None])[0], image.shape)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Overlap of two masks, 2|A and B| / (|A| + |B|); NaN if both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else math.nan


def save(model: LungSegmenter, path: Path) -> None:
    """Write weights and settings into one safetensors file."""
    from safetensors.torch import save as to_bytes

    # one entry only: the format's writer keeps no order among several, and the bytes would differ from run to run
    metadata = {"chestflow": json.dumps({"size": model.size, "width": model.width}, sort_keys=True)}
    weights = {name: value.contiguous() for name, value in model.network.state_dict().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(to_bytes(weights, metadata))


def load(path: Path) -> LungSegmenter:
    """Read what :func:`save` wrote.

    Raises:
        TrainingError: the file is missing, damaged, or another network's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as stream:
            settings = json.loads(stream.metadata()["chestflow"])
            weights = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        model = build(settings["size"], settings["width"])
        model.network.load_state_dict(weights)
    except FileNotFoundError:
        raise TrainingError("the X-ray lung segmenter's weights are missing: run the stage `segment`") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError):
        raise TrainingError("the X-ray lung segmenter's weights are damaged: run the stage `segment` again") from None
    model.network.eval()
    return model
