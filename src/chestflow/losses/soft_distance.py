"""Soft distance regularisation of MAG-SD (paper 001, algorithm 1, eqs. 5 to 7): views should answer as their image.

Everything is computed in float32. Views are (K, B, C): K augmentations of each of B images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RULES = ("code", "paper")
LABELS = ("unit", "code", "one_hot")
REDUCTIONS = ("sum", "mean")
REGULARISERS = ("soft_distance", "ce_mean", "l2", "none")
_SMOOTH = 0.01


def label_distribution(target: Tensor, classes: int, kind: str = "unit") -> Tensor:
    """What replaces an unconfident prediction, (B, C): 0.01 for each other class, the rest on the label.

    Args:
        target: int64 (B,).
        kind: ``unit`` puts 1 - 0.01 (C - 1) on the label, so that a row sums to 1; ``code`` puts 1 - 0.01 C there as
            the paper's code does, and a row sums to 0.99; ``one_hot`` is the label alone, as algorithm 1 has it.
    """
    if kind == "one_hot":
        return F.one_hot(target, classes).float()
    on_label = 1 - _SMOOTH * (classes - 1 if kind == "unit" else classes)
    return torch.where(F.one_hot(target, classes).bool(), on_label, _SMOOTH)


def soft_target(logits: Tensor, target: Tensor, theta: float = 0.7, rule: str = "code", label: str = "unit") -> Tensor:
    """P' (B, C), without gradient: the prediction where it is confident, else the label's distribution (algorithm 1).

    Args:
        logits: (B, C) of the raw image.
        target: int64 (B,).
        theta: confidence in [0, 1]; at 1 every row comes from the label.
        rule: ``code`` trusts a prediction that is right and reaches theta; ``paper`` any that exceeds theta, right or
            wrong.
        label: see :func:`label_distribution`.
    """
    prediction = logits.detach().float().softmax(1)
    top, found = prediction.max(1)
    confident = (top >= theta) & (found == target) if rule == "code" else top > theta
    if theta >= 1:  # a saturated softmax is exactly 1 in float32
        confident = torch.zeros_like(confident)
    return torch.where(confident[:, None], prediction, label_distribution(target, logits.shape[1], label))


def _reduced(per_view: Tensor, reduction: str) -> Tensor:
    return per_view.sum() if reduction == "sum" else per_view.mean()


def soft_distance(expected: Tensor, views: Tensor, reduction: str = "sum") -> Tensor:
    """Distance of the views' predictions from P', a scalar (eq. 6).

    Each view gives mean |P' - p_k| over B x C, between 0 and 2 / C; ``sum`` adds the views as the paper's code does,
    ``mean`` averages them.

    Args:
        expected: P' (B, C).
        views: logits (K, B, C).
    """
    return _reduced((expected - views.float().softmax(2)).abs().mean((1, 2)), reduction)


def squared_distance(target: Tensor, views: Tensor, reduction: str = "sum") -> Tensor:
    """The paper's "L2" comparator: mean (one-hot - p_k)^2 over B x C of each view, then as :func:`soft_distance`."""
    probabilities = views.float().softmax(2)
    truth = F.one_hot(target, views.shape[2]).to(probabilities.dtype)
    return _reduced((truth - probabilities).square().mean((1, 2)), reduction)


def regularised_loss(
    logits: Tensor,
    views: Tensor | None,
    target: Tensor,
    *,
    reg: str = "soft_distance",
    reg_weight: float = 1.0,
    theta: float = 0.7,
    rule: str = "code",
    label: str = "unit",
    reduction: str = "sum",
) -> dict[str, Tensor]:
    """The loss of a training step and its parts.

    Args:
        logits: (B, C) of the raw images.
        views: logits (K, B, C) of their augmented views; None where there are none.
        reg: ``soft_distance`` and ``l2`` add ``reg_weight`` times their distance to the raw images' cross entropy;
            ``ce_mean`` averages the cross entropies of the raw images (weight 1) and of each view (``reg_weight``), as
            a disabled branch of the paper's code does; ``none`` leaves the views out.

    Returns:
        ``loss`` to descend, ``cross_entropy`` of the raw images and, with views, ``regulariser``.
    """
    raw = F.cross_entropy(logits.float(), target)
    if views is None or reg == "none":
        return {"loss": raw, "cross_entropy": raw}
    if reg == "ce_mean":
        crossed = F.cross_entropy(views.float().flatten(0, 1), target.repeat(len(views)))
        share = reg_weight * len(views)
        return {"loss": (raw + share * crossed) / (1 + share), "cross_entropy": raw, "regulariser": crossed}
    if reg == "l2":
        distance = squared_distance(target, views, reduction)
    else:
        distance = soft_distance(soft_target(logits, target, theta, rule, label), views, reduction)
    return {"loss": raw + reg_weight * distance, "cross_entropy": raw, "regulariser": distance}
