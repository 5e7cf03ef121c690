"""The parallel partial decoder of Inf-Net: three high-level maps to one coarse global map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.nn.receptive_field import ConvNorm


def _double(x: Tensor) -> Tensor:
    # corners aligned, as in the code, though its other resampling is not
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class PartialDecoder(nn.Module):
    """Deeper maps gate shallower ones by products, then all are joined from coarse to fine.

    Only the high-level maps take part: the fine ones cost most and bring least (Wu et al., "Cascaded partial decoder",
    2019, where this form comes from).

    Args:
        channels: of each of the three inputs.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.deep_to_middle = ConvNorm(channels, channels, 3)
        self.deep_to_fine = ConvNorm(channels, channels, 3)
        self.middle_to_fine = ConvNorm(channels, channels, 3)
        self.raise_deep = ConvNorm(channels, channels, 3)
        self.raise_joined = ConvNorm(2 * channels, 2 * channels, 3)
        self.join_middle = ConvNorm(2 * channels, 2 * channels, 3)
        self.join_fine = ConvNorm(3 * channels, 3 * channels, 3)
        self.last = ConvNorm(3 * channels, 3 * channels, 3)
        self.score = nn.Conv2d(3 * channels, 1, 1)

    def forward(self, deep: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """(B, C, h, w), (B, C, 2h, 2w) and (B, C, 4h, 4w) to one map of logits, (B, 1, 4h, 4w)."""
        gated_middle = self.deep_to_middle(_double(deep)) * middle
        gated_fine = self.deep_to_fine(_double(_double(deep))) * self.middle_to_fine(_double(middle)) * fine
        joined = self.join_middle(torch.cat([gated_middle, self.raise_deep(_double(deep))], dim=1))
        joined = self.join_fine(torch.cat([gated_fine, self.raise_joined(_double(joined))], dim=1))
        score: Tensor = self.score(self.last(joined))
        return score
