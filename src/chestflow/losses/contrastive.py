"""Supervised contrastive losses on unit vectors (paper 000, section 3.4; Khosla et al. 2020)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]


def supcon(
    z: Tensor,
    target: Tensor,
    temperature: float = 0.05,
    *,
    reduction: Reduction = "mean",
    base_temperature: float | None = None,
) -> Tensor:
    """The paper's loss: each anchor's mean log-probability of its positives among all others, negated.

    L_i = -1/|P(i)| sum_{p in P(i)} (s_ip - logsumexp_{a != i} s_ia), s = z z^T / temperature, P(i) all others of i's
    class. Anchors without a positive are skipped; with no anchor left (B = 1, say) the loss is 0 and still part of the
    graph. Computed in float32.

    Args:
        z: (B, P) unit rows; several views of an image are rows of their own with the same target.
        target: (B,) class indices.
        temperature: above 0.
        reduction: over the anchors that count: ``mean``, so that the step does not grow with B, or the paper's ``sum``.
        base_temperature: multiply by temperature / base_temperature, as the loss's first code does (0.07); the
            formula has no such factor.

    Returns:
        A scalar.
    """
    z = z.float()
    with torch.autocast(z.device.type, enabled=False):
        scores = z @ z.T / temperature
    self_pair = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (target[:, None] == target[None, :]) & ~self_pair
    # -inf on the diagonal takes the anchor out of its own denominator; a lone sample would leave nothing but -inf
    others = scores.masked_fill(self_pair, -torch.inf) if len(z) > 1 else scores
    log_p = scores - torch.logsumexp(others, dim=1, keepdim=True)
    count = positive.sum(1)
    per_anchor = -(log_p * positive).sum(1) / count.clamp_min(1)
    total = (per_anchor * (count > 0)).sum()
    if reduction == "mean":
        total = total / (count > 0).sum().clamp_min(1)
    return total if base_temperature is None else total * (temperature / base_temperature)


def npairs(z: Tensor, target: Tensor, temperature: float = 0.05) -> Tensor:
    """What the paper's code computes instead: cross entropy of each row of similarities against its class mates, the
    anchor itself among both the positives and the denominator. Mean over anchors, float32.

    Args:
        z: (B, P) unit rows.
        target: (B,) class indices.
        temperature: above 0.
    """
    z = z.float()
    with torch.autocast(z.device.type, enabled=False):
        scores = z @ z.T / temperature
    same = (target[:, None] == target[None, :]).float()
    wanted = same / same.sum(1, keepdim=True)
    return -(wanted * torch.log_softmax(scores, dim=1)).sum(1).mean()
