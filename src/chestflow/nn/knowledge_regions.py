"""Where the local branches of paper 003 look: the heat map's largest component, and the infection left and right.

Everything but the labelling of components works on whole batches on their device. Boxes are int64 (top, left, bottom,
right), inclusive; :func:`edges` makes them the float borders that :func:`crop_resize` cuts at.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from chestflow.imaging.cam import upsample

Source = Literal["relu_sum", "sum", "abs_max", "cam"]
Norm = Literal["min_max", "paper"]
#: A map whose range is below this share of its largest magnitude is constant: enlarging it leaves rounding behind.
_FLAT = 1e-6


def heat_sum(features: Tensor, source: Source = "relu_sum") -> Tensor:
    """S of eq. 1, (B, 1, h, w) float32 without gradient, from the last map (B, K, h, w).

    Args:
        features: of the global branch.
        source: ``sum`` over the channels as printed; ``relu_sum`` over their positive part, since some networks end
            before their last ReLU; ``abs_max``, the largest magnitude among the channels.

    Raises:
        ValueError: an unknown source.
    """
    features = features.detach().float()
    if source == "relu_sum":
        return features.relu().sum(1, keepdim=True)
    if source == "sum":
        return features.sum(1, keepdim=True)
    if source == "abs_max":
        return features.abs().amax(1, keepdim=True)
    raise ValueError(f"heat_source is {source!r}; of the map alone relu_sum, sum or abs_max can be made")


def class_map(features: Tensor, weights: Tensor) -> Tensor:
    """The positive part of a class activation map, (B, 1, h, w) float32 without gradient: S of source ``cam``.

    Where nothing speaks for the class S is zero throughout, and so the local branch sees the whole slice.

    Args:
        features: the last map (B, K, h, w), whose mean a linear layer classifies.
        weights: (K,) of that layer for the class.
    """
    return torch.einsum("k,bkhw->bhw", weights.detach().float(), features.detach().float()).relu()[:, None]


def heat_map(summed: Tensor, size: tuple[int, int], norm: Norm = "min_max") -> Tensor:
    """H of eq. 1 in [0, 1], (B, 1, H, W): S enlarged to ``size``, then normalised; zeros where S is constant.

    ``min_max`` divides by max - min, so that H reaches 1. ``paper`` divides by max as printed: H ends at 1 - min / max,
    depends on a shift of S, and is zero where max is not above 0, where the quotient would turn its sign.
    """
    low, high = summed.amin((1, 2, 3), keepdim=True), summed.amax((1, 2, 3), keepdim=True)
    flat = high - low <= _FLAT * torch.maximum(high.abs(), low.abs())
    large = upsample(summed, size)
    low, high = large.amin((1, 2, 3), keepdim=True), large.amax((1, 2, 3), keepdim=True)
    span = high if norm == "paper" else high - low
    nothing = flat | (span <= 0)
    return ((large - low) / span.masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0).clamp(0.0, 1.0)


def largest_component(mask: NDArray[np.bool_], connectivity: int = 8) -> NDArray[np.bool_]:
    """The component of most pixels, of equal ones the first in the scan's order; empty for an empty mask.

    Args:
        mask: (H, W).
        connectivity: 8 joins pixels that touch at a corner, 4 does not.

    Raises:
        ValueError: another connectivity.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity is {connectivity}; it is 4 or 8")
    labels, found = ndimage.label(mask, np.ones((3, 3)) if connectivity == 8 else None)
    if found == 0:
        return np.zeros(mask.shape, dtype=bool)
    chosen: NDArray[np.bool_] = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return chosen


def attended(heat: Tensor, tau: float, connectivity: int = 8) -> Tensor:
    """Bool (B, H, W): the largest component of B = H > tau (eq. 2); the whole picture where B is empty.

    Args:
        heat: H (B, 1, H, W).
        tau: strictly below what counts; 1 or more leaves nothing, so the whole picture.
        connectivity: see :func:`largest_component`.
    """
    above = (heat[:, 0] > tau).cpu().numpy()
    parts = np.stack([largest_component(one, connectivity) for one in above])
    parts[~parts.any((1, 2))] = True
    return torch.from_numpy(parts).to(heat.device)


def boxes(mask: Tensor) -> Tensor:
    """Smallest boxes (B, 4) around True in masks (B, H, W); the whole picture for an empty mask."""
    found = []
    for hit in (mask.any(2), mask.any(1)):
        side = hit.shape[1]
        place = torch.arange(side, device=mask.device)
        first, last = place.masked_fill(~hit, side).amin(1), place.masked_fill(~hit, -1).amax(1)
        empty = last < 0
        found += [first.masked_fill(empty, 0), last.masked_fill(empty, side - 1)]
    top, bottom, left, right = found
    return torch.stack([top, left, bottom, right], dim=1)


def widen(box: Tensor, margin: float, min_side: int, size: tuple[int, int]) -> Tensor:
    """Boxes (B, 4) grown on every side and to a smallest side, kept inside the picture.

    Args:
        box: inclusive.
        margin: share of the picture's side that is added on each side, rounded to whole pixels.
        min_side: pixels that a side has at least, as far as the picture goes; the box stays in the middle.
        size: (H, W) of the picture.
    """
    spans = []
    for axis, side in enumerate(size):
        pad = round(margin * side)
        first = (box[:, axis] - pad).clamp_min(0)
        length = (box[:, axis + 2] + pad).clamp_max(side - 1) - first + 1
        wanted = length.clamp_min(min(min_side, side))
        first = torch.minimum((first - (wanted - length) // 2).clamp_min(0), side - wanted)
        spans.append((first, first + wanted - 1))
    (top, bottom), (left, right) = spans
    return torch.stack([top, left, bottom, right], dim=1)


def left_of(lung: Tensor) -> Tensor:
    """Bool (B, H, W): the pixels that are nearer to the lung on the picture's left than to the one on its right.

    The lungs are the two largest components of the mask, 8-connected. Where the second is missing or below a tenth of
    the first (one lung, or both grown together, or no mask), the midline parts the picture as in :func:`side_boxes`.

    Args:
        lung: (B, 1, H, W); above 0.5 is lung.
    """
    masks = (lung[:, 0] > 0.5).cpu().numpy()
    return torch.from_numpy(np.stack([_left_of(mask) for mask in masks])).to(lung.device)


def _left_of(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, found = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=3)[1:]
    first, second = np.argsort(-sizes, kind="stable")[:2]
    if found < 2 or 10 * sizes[second] < sizes[first]:
        return np.broadcast_to(np.arange(mask.shape[1]) < mask.shape[1] // 2, mask.shape)
    lungs = [labels == 1 + first, labels == 1 + second]
    lungs.sort(key=lambda one: float(np.nonzero(one)[1].mean()))
    left, right = (ndimage.distance_transform_edt(~one) for one in lungs)
    nearer: NDArray[np.bool_] = left < right
    return nearer


def side_boxes(infection: Tensor, margin: float, min_side: int, left: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Boxes (B, 2, 4) of the infection left and right, and whether it has any (B, 2).

    Sides are the picture's: the patient's left lies right. The midline parts them unless ``left`` does; of an odd width
    the middle column belongs to the right half. A box may grow over the border between them.

    Args:
        infection: (B, 1, H, W); above 0.5 is infected.
        margin: see :func:`widen`.
        min_side: see :func:`widen`.
        left: bool (B, H, W), what belongs to the left side, as :func:`left_of` makes it.
    """
    mask = infection[:, 0] > 0.5
    height, width = mask.shape[1:]
    is_left = torch.arange(width, device=mask.device) < width // 2 if left is None else left
    halves = [mask & is_left, mask & ~is_left]
    found = torch.stack([widen(boxes(half), margin, min_side, (height, width)) for half in halves], dim=1)
    return found, torch.stack([half.flatten(1).any(1) for half in halves], dim=1)


def edges(box: Tensor) -> Tensor:
    """Inclusive boxes (N, 4) as float borders (top, left, bottom, right): pixel i reaches from i to i + 1."""
    return box.float() + torch.tensor([0.0, 0.0, 1.0, 1.0], device=box.device)


def crop_resize(image: Tensor, border: Tensor, index: Tensor | None = None) -> Tensor:
    """Parts of pictures enlarged to the pictures' size, (N, C, H, W): bilinear, corners not aligned.

    The whole picture comes back unchanged. Outside of the picture its edge is repeated.

    Args:
        image: (B, C, H, W).
        border: (N, 4) of :func:`edges`, any part of a pixel.
        index: (N,) the picture that each part is cut from; None is one part a picture.
    """
    from torchvision.ops import roi_align

    if index is None:
        index = torch.arange(len(image), device=image.device)
    top, left, bottom, right = border.float().unbind(1)
    places = torch.stack([index.float(), left, top, right, bottom], dim=1)
    # one sample a pixel: parts are never larger than the picture, so nothing is skipped
    size = (image.shape[2], image.shape[3])
    parts: Tensor = roi_align(image.float(), places, size, sampling_ratio=1, aligned=True)
    return parts
