"""Attention pooling of MAG-SD (paper 001): a feature matrix of every attention map with every channel."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention_features(features: Tensor, maps: Tensor, pool: str = "avg") -> Tensor:
    """Feature matrix (B, M, C): row j pools maps_j * features over space.

    Args:
        features: (B, C, h, w).
        maps: (B, M, h, w).
        pool: ``avg`` divides the sum by h * w; ``max`` takes the largest product.
    """
    if pool == "max":
        # one map at a time: all products at once would take M times the features' memory
        return torch.stack([(features * one[:, None]).amax((2, 3)) for one in maps.unbind(1)], dim=1)
    cells = features.shape[2] * features.shape[3]
    return torch.einsum("bmhw,bchw->bmc", maps, features) / cells


def signed_root(x: Tensor, eps: float = 1e-6) -> Tensor:
    """sign(x) * sqrt(|x| + eps): exactly 0 at 0, gradient at most 1 / (2 sqrt(eps)).

    The paper's code adds 1e-12, which lets a tiny value pass on 500,000 times its gradient.
    """
    return x.sign() * (x.abs() + eps).sqrt()


class AttentionPooling(nn.Module):
    """The vector that MAG-SD classifies: M * C values of unit norm, attention-major (value j * C + c).

    Computed in float32 under mixed precision.

    Args:
        pool: see :func:`attention_features`.
        eps: of the signed square root.
    """

    def __init__(self, pool: str = "avg", eps: float = 1e-6) -> None:
        super().__init__()
        if pool not in ("avg", "max") or eps <= 0:
            raise ValueError(f"pool is {pool!r} (avg or max) and eps {eps} (above 0)")
        self.pool, self.eps = pool, eps

    def forward(self, features: Tensor, maps: Tensor) -> Tensor:
        """(B, C, h, w) and (B, M, h, w) to (B, M * C); zeros where the features or the maps are all zero."""
        kind = features.device.type
        meta = not torch.amp.is_autocast_available(kind)
        with nullcontext() if meta else torch.autocast(kind, enabled=False):
            matrix = attention_features(features.float(), maps.float(), self.pool)
            return F.normalize(signed_root(matrix, self.eps).flatten(1), dim=1)
