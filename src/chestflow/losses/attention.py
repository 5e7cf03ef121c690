"""Attention loss of paper 004: the network's activation map against the infection mask (eqs. 2 and 3).

Everything is computed in float32: the sums run over millions of voxels, and the steep sigmoid underflows in float16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-6


def unit_range(cam: Tensor, detach_range: bool = False) -> Tensor:
    """Scale each sample (B, 1, ...) to [0, 1] by its minimum and maximum; a constant map becomes zeros.

    Gradients flow through minimum and maximum too, unless ``detach_range``.
    """
    dims = tuple(range(1, cam.ndim))
    low, high = cam.amin(dims, keepdim=True), cam.amax(dims, keepdim=True)
    if detach_range:
        low, high = low.detach(), high.detach()
    return (cam - low) / (high - low).clamp_min(_EPS)


def soft_mask(
    cam: Tensor,
    size: tuple[int, ...],
    alpha: float = 100.0,
    beta: float = 0.4,
    upsample_first: bool = True,
    detach_range: bool = False,
) -> Tensor:
    """T(A) = sigmoid(alpha (A* - beta)) with A* the map at the input's size in [0, 1] (eq. 2).

    With alpha 100 this is nearly a threshold at beta: the slope is 25 there and below 1e-6 beyond beta +- 0.18. T lies
    strictly between 0 and 1, but float32 rounds it to 1 from 0.17 above beta (float64 from 0.37), where 1 - T drops
    below half of its spacing.

    Args:
        cam: (B, 1, d, h, w) or (B, 1, h, w), non-negative.
        size: the input's (D, H, W) or (H, W).
        upsample_first: interpolate and then normalise, as the paper does; else the reverse, in which interpolation
            may leave no voxel at 1.

    Returns:
        (B, 1, *size) float32 in (0, 1]. Gradients vanish where a map is constant, as a dead ReLU leaves it.
    """
    cam = cam.float()
    mode = "trilinear" if cam.ndim == 5 else "bilinear"
    if upsample_first:
        cam = unit_range(F.interpolate(cam, size, mode=mode, align_corners=False), detach_range)
    else:
        cam = F.interpolate(unit_range(cam, detach_range), size, mode=mode, align_corners=False)
    return torch.sigmoid(alpha * (cam - beta))


def overlap_loss(t: Tensor, m: Tensor) -> Tensor:
    """L_ex = sum (T - M)^2 / (sum T + sum M) of each sample, (B,) in [0, 1] (eq. 3).

    For binary T and M it is 1 - Dice. Both empty: 0. M empty alone: sum T^2 / sum T, which pushes T to 0.

    Args:
        t, m: (B, ...) of the same shape in [0, 1].
    """
    t, m = t.float().flatten(1), m.float().flatten(1)
    return (t - m).square().sum(1) / (t.sum(1) + m.sum(1) + _EPS)


def attended(infection: Tensor | None, take: Tensor, skip_empty: bool = True) -> Tensor:
    """Which samples take part in :func:`attention_loss`, bool (B,); arguments as there."""
    if infection is None:
        return torch.zeros_like(take)
    return take & (infection.flatten(1).amax(1) > 0) if skip_empty else take


def attention_loss(
    cam: Tensor,
    infection: Tensor | None,
    take: Tensor,
    *,
    alpha: float = 100.0,
    beta: float = 0.4,
    upsample_first: bool = True,
    detach_range: bool = False,
    skip_empty: bool = True,
    divisor: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean of L_ex over the samples that take part, and their number.

    Args:
        cam: (B, 1, d, h, w) or (B, 1, h, w).
        infection: (B, 1, D, H, W) or (B, 1, H, W) in {0, 1}; None when no sample has a mask.
        take: bool (B,), the COVID-19 samples that have a mask.
        skip_empty: leave out samples whose mask is empty: a segmenter that found nothing would otherwise punish the
            network for looking anywhere.
        divisor: divide the sum by this scalar and not by the number: of a batch that is a part of a larger one, whose
            loss is a mean over samples, the larger batch's number times this part's share of its samples.

    Returns:
        Loss and count, both scalars; 0 and 0 where no sample takes part.
    """
    take = attended(infection, take, skip_empty)
    count = take.sum()
    if infection is None or not bool(count):
        return cam.float().sum() * 0.0, torch.zeros_like(count)
    with torch.autocast(cam.device.type, enabled=False):
        chosen = infection[take]
        t = soft_mask(cam[take], tuple(chosen.shape[2:]), alpha, beta, upsample_first, detach_range)
        each = overlap_loss(t, chosen)
        return (each.mean() if divisor is None else each.sum() / divisor), count
