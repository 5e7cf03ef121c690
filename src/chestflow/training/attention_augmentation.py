"""Attention-guided mix-up, patching and dimming (paper 001), for whole batches on their device.

Equations 2 to 4. Nothing loops over images and nothing waits for the device: boxes are numbers in tensors, crops are
gathers, and choices are masks. The images are network inputs (standardised), so dimming pulls towards an image's mean,
which is 0. Every draw is a uniform number made on the CPU from the given generator, eight an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: the order is that of the map slots of the paper's code
KINDS = ("mix_up", "dimming", "patching")
_UNIFORMS = 8  # columns: map of each kind 0-2, threshold of each kind 3-5, place of the patch (y, x) 6-7
_EPS = 1e-6


@dataclass(frozen=True)
class AugmentationSettings:
    """How strongly to augment.

    Attributes:
        theta_box: range of the threshold of mix-up's and patching's box, as a share of the map's maximum.
        theta_dim: range of the threshold of dimming.
        gamma: share of the original image in mix-up.
        pad: what a box grows by on each side, as a share of the image's side.
        dim_value: factor of what is dimmed.
        dim_rest: factor of the rest.
    """

    theta_box: tuple[float, float] = (0.4, 0.6)
    theta_dim: tuple[float, float] = (0.2, 0.5)
    gamma: float = 0.6
    pad: float = 0.1
    dim_value: float = 0.1
    dim_rest: float = 1.0


def draw_uniforms(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(count, 8) numbers in [0, 1) from a CPU generator, copied to ``device`` without waiting for it."""
    drawn = torch.rand(count, _UNIFORMS, generator=generator)
    if device.type == "cuda":
        drawn = drawn.pin_memory()  # from pageable memory the copy would wait
    return drawn.to(device, non_blocking=True)


def choose_maps(maps: Tensor, uniforms: Tensor, eps: float = 1e-12) -> Tensor:
    """Indices (B, K) of maps drawn with replacement, with probability proportional to sqrt(sum of the map + eps).

    In float64: normalising in float32 leaves a last bin that no number reaches, or one too few.

    Args:
        maps: (B, M, h, w), non-negative.
        uniforms: (B, K) in [0, 1).
    """
    weights = (maps.double().sum((2, 3)) + eps).sqrt()
    # running sums as a product: a CUDA cumsum of floats adds in no fixed order
    running = weights @ torch.ones(maps.shape[1], maps.shape[1], dtype=weights.dtype, device=maps.device).triu()
    wanted = uniforms.double() * running[:, -1:]
    return torch.searchsorted(running, wanted, right=True).clamp_max(maps.shape[1] - 1)


def regions(chosen: Tensor, theta: Tensor, size: tuple[int, int]) -> Tensor:
    """Where chosen maps (B, K, h, w), enlarged to ``size``, reach ``theta`` (B, K) of their maximum: bool (B, K, H, W).

    Nowhere for a map that is 0 everywhere, whose threshold would otherwise hold everywhere.
    """
    top = chosen.amax((2, 3), keepdim=True)
    large = F.interpolate(chosen, size, mode="bilinear", align_corners=False)
    # instead of masking afterwards: no value reaches infinity
    return large >= (theta[:, :, None, None] * top).masked_fill(top <= _EPS, float("inf"))


def _extent(hits: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """First index and length of the padded run from the first to the last True of each row (B, n); 0 where none is."""
    n = hits.shape[1]
    place = torch.arange(n, device=hits.device)
    first = place.masked_fill(~hits, n).amin(1)
    last = place.masked_fill(~hits, -1).amax(1)
    start = (first - pad).clamp_min(0)
    length = (last + 1 + pad).clamp_max(n) - start
    empty = last < 0
    return start.masked_fill(empty, 0), length.masked_fill(empty, 0)


def boxes(region: Tensor, pad: float = 0.1) -> Tensor:
    """Bounding boxes int64 (B, 4) of regions (B, H, W): top, left, height, width; zeros for an empty region.

    Each side grows by ``pad`` times the image's side, rounded to whole pixels, and is clipped to the image. The last
    row and column belong to the box.
    """
    height, width = region.shape[1:]
    top, tall = _extent(region.any(2), round(pad * height))
    left, wide = _extent(region.any(1), round(pad * width))
    return torch.stack([top, left, tall, wide], dim=1)


def _rows(image: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, n) of (B, C, H, W)."""
    return image.gather(2, index[:, None, :, None].expand(-1, image.shape[1], -1, image.shape[3]))


def _columns(image: Tensor, index: Tensor) -> Tensor:
    return image.gather(3, index[:, None, None, :].expand(-1, image.shape[1], image.shape[2], -1))


def _taps(start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels and the second one's weight (B, size) of a linear resize of [start, start + length) to size.

    The arithmetic of ``F.interpolate(align_corners=False)``; a sampling grid in [-1, 1] would lose four digits.
    """
    place = torch.arange(size, device=start.device) + 0.5
    source = (place * (length / size)[:, None] - 0.5).clamp_min(0.0)
    low = source.long()
    high = torch.minimum(low + 1, length[:, None] - 1)
    return start[:, None] + low, start[:, None] + high, source - low


def crop_resize(image: Tensor, box: Tensor) -> Tensor:
    """Each image's box enlarged to the whole image, (B, C, H, W): bilinear, corners not aligned.

    A box that is empty gives back its image.
    """
    height, width = image.shape[2:]
    empty = (box[:, 2:] == 0).any(1)
    whole = torch.zeros_like(box)
    whole[:, 2], whole[:, 3] = height, width
    top, left, tall, wide = torch.where(empty[:, None], whole, box).unbind(1)
    above, below, weight = _taps(top, tall, height)
    rows = torch.lerp(_rows(image, above), _rows(image, below), weight[:, None, :, None].to(image.dtype))
    before, after, weight = _taps(left, wide, width)
    return torch.lerp(_columns(rows, before), _columns(rows, after), weight[:, None, None, :].to(image.dtype))


def mix_up(image: Tensor, box: Tensor, gamma: float = 0.6) -> Tensor:
    """gamma * image + (1 - gamma) * its box enlarged to full size; an empty box leaves the image as it is."""
    return torch.lerp(crop_resize(image, box), image, gamma)


def patching(image: Tensor, box: Tensor, place: Tensor) -> Tensor:
    """The box pasted, at its own size, somewhere on the same image; an empty box leaves the image as it is.

    Args:
        image: (B, C, H, W).
        box: (B, 4) of :func:`boxes`.
        place: (B, 2) in [0, 1): where, from the top and from the left, among all places where the box fits.
    """
    picked, inside = [], []
    for axis, side in enumerate(image.shape[2:]):
        start, length = box[:, axis, None], box[:, axis + 2, None]
        goal = ((side - length + 1) * place[:, axis, None]).long()
        at = torch.arange(side, device=image.device) - goal  # (B, side): position within the patch
        inside.append((at >= 0) & (at < length))
        picked.append((start + at).clamp(0, side - 1))
    pasted = _columns(_rows(image, picked[0]), picked[1])
    return torch.where(inside[0][:, None, :, None] & inside[1][:, None, None, :], pasted, image)


def dimming(image: Tensor, region: Tensor, value: float = 0.1, rest: float = 1.0) -> Tensor:
    """The image times ``value`` inside the region (B, H, W) and ``rest`` outside; an empty region changes nothing."""
    others = image
    if rest != 1.0:
        others = torch.where(region.any(2).any(1)[:, None, None, None], image * rest, image)
    return torch.where(region[:, None], image * value, others)


@torch.no_grad()
def attention_augment(
    image: Tensor, maps: Tensor, uniforms: Tensor, kinds: Sequence[str], settings: AugmentationSettings | None = None
) -> list[Tensor]:
    """One augmented batch of ``image``'s shape, dtype and device for each of ``kinds``.

    Args:
        image: (B, C, H, W), the network's standardised input.
        maps: (B, M, h, w) attention maps of those images.
        uniforms: of :func:`draw_uniforms`; a kind's draws do not depend on which others are asked for.
        kinds: of :data:`KINDS`.
    """
    how = settings or AugmentationSettings()
    slots = [KINDS.index(kind) for kind in kinds]
    column = uniforms.unbind(1)  # indexing by a list would send the list to the device and wait
    index = choose_maps(maps, torch.stack([column[s] for s in slots], dim=1))
    chosen = maps.float().gather(1, index[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
    ranges = [how.theta_dim if kind == "dimming" else how.theta_box for kind in kinds]
    theta = torch.stack([a + (b - a) * column[3 + s] for s, (a, b) in zip(slots, ranges, strict=True)], dim=1)
    found = regions(chosen, theta, (image.shape[2], image.shape[3]))
    views = []
    for kind, region in zip(kinds, found.unbind(1), strict=True):
        if kind == "dimming":
            views.append(dimming(image, region, how.dim_value, how.dim_rest))
        elif kind == "mix_up":
            views.append(mix_up(image, boxes(region, how.pad), how.gamma))
        else:
            views.append(patching(image, boxes(region, how.pad), uniforms[:, 6:]))
    return views
