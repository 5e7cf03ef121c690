"""Spatial pyramid pooling with the pyramid match weights (paper 002, section III-B)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pyramid_weights(levels: tuple[int, ...], weighting: bool = True) -> Tensor:
    """Weight of each bin, (N,) with N = sum of the squared levels, coarsest level first.

    Of L + 1 levels, level 0 weighs 2^-L and level l weighs 2^(l - L - 1): finer bins more, sum 1 over levels (the
    pyramid match kernel). Without ``weighting`` every bin weighs 1.
    """
    last = len(levels) - 1
    per_level = [2.0**-last if i == 0 else 2.0 ** (i - last - 1) for i in range(len(levels))]
    return torch.cat([torch.full((n * n,), w if weighting else 1.0) for n, w in zip(levels, per_level, strict=True)])


class SpatialPyramid(nn.Module):
    """Pool a map over grids of ``levels`` x ``levels`` bins.

    Adaptive bins fit any map size: they overlap where a level does not divide the map, and repeat cells where the map
    is smaller than the level.

    Args:
        levels: bins along each side, coarsest first; (1, 2, 4) gives 21 bins.
        pool: ``max`` or ``avg`` inside a bin.
        weighting: see :func:`pyramid_weights`.
    """

    weights: Tensor

    def __init__(
        self, levels: tuple[int, ...] = (1, 2, 4), pool: Literal["max", "avg"] = "max", weighting: bool = True
    ) -> None:
        super().__init__()
        if not levels or min(levels) < 1 or list(levels) != sorted(set(levels)):
            raise ValueError(f"levels are {levels}; give rising whole numbers of at least 1, such as (1, 2, 4)")
        if pool not in ("max", "avg"):
            raise ValueError(f"pool is {pool!r}; choose max or avg")
        self.levels, self.pool = tuple(levels), pool
        self.register_buffer("weights", pyramid_weights(self.levels, weighting))

    @property
    def bins(self) -> int:
        """Number of bins N."""
        return sum(n * n for n in self.levels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, H, W) to descriptors (B, N, D), not yet weighted."""
        pool = F.adaptive_max_pool2d if self.pool == "max" else F.adaptive_avg_pool2d
        bins = [pool(features, n).flatten(2) for n in self.levels]  # (B, D, n * n) each
        return torch.cat(bins, dim=2).transpose(1, 2)

    def vector(self, features: Tensor) -> Tensor:
        """(B, D, H, W) to the concatenated, bin-weighted pyramid vector (B, N * D) of setting B."""
        return (self(features) * self.weights[None, :, None]).flatten(1)
