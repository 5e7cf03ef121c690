"""Reverse attention and edge attention of Inf-Net (Fan et al., TMI 2020, sections III-B and III-D)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.nn.receptive_field import ConvNorm

EDGE_CHANNELS = 64


def resized(x: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """Bilinear, half-pixel centres, without smoothing before it shrinks: as in the code."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def score_layer(inputs: int, kernel: int, norm: bool) -> nn.Module:
    """To one map of logits; with ``norm`` it ends in a batch norm, as the code's does.

    Batch norm makes logits of deviation 1, and its factor moves by about the learning rate a step: maps stay undecided
    for hundreds of short steps. Without, it is a convolution with bias.
    """
    return ConvNorm(inputs, 1, kernel) if norm else nn.Conv2d(inputs, 1, kernel, padding=kernel // 2)


class EdgeAttention(nn.Module):
    """From the finest features to edge guidance, which every later stage reads, and a map of edge logits."""

    def __init__(self, inputs: int, score_norm: bool = True) -> None:
        super().__init__()
        self.guide = nn.Sequential(
            ConvNorm(inputs, EDGE_CHANNELS, 1),
            ConvNorm(EDGE_CHANNELS, EDGE_CHANNELS, 3),
            ConvNorm(EDGE_CHANNELS, EDGE_CHANNELS, 3),
        )
        self.score = score_layer(EDGE_CHANNELS, 3, score_norm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs, H, W) to guidance (B, 64, H, W) and logits (B, 1, H, W)."""
        guidance = self.guide(x)
        return guidance, self.score(guidance)


class ReverseAttention(nn.Module):
    """Looks where the coarser map has *not* found infection yet, and corrects that map.

    R = e([f * (1 - sigmoid(S)), edge guidance]) and the new map is S + score(R), with S the coarser map of logits.
    Erasing what is found makes the features that are left those of the missed parts and the borders.

    Args:
        inputs: channels of the backbone's map f.
        inner: channels inside.
        kernel: of the inner convolutions: 5 in the coarsest stage, 3 in the others.
        depth: how many inner convolutions, each followed by ReLU.
        score_kernel: of the convolution that makes the logits: 1 in the coarsest stage, 3 in the others.
        score_norm: end it in a batch norm, see :func:`score_layer`.
    """

    def __init__(
        self,
        inputs: int,
        inner: int,
        kernel: int = 3,
        depth: int = 2,
        score_kernel: int = 3,
        score_norm: bool = True,
    ) -> None:
        super().__init__()
        self.reduce = ConvNorm(inputs, inner, 1)
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [ConvNorm(inner + EDGE_CHANNELS if index == 0 else inner, inner, kernel), nn.ReLU()]
        self.correct = nn.Sequential(*layers)
        self.score = score_layer(inner, score_kernel, score_norm)

    def forward(self, features: Tensor, coarser: Tensor, guidance: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, inputs, h, w), a coarser map of logits (B, 1, ., .) and edge guidance (B, 64, ., .).

        Returns:
            The map of logits (B, 1, h, w) and the features it was made from, (B, inner, h, w), non-negative.
        """
        size = features.shape[2:]
        found = resized(coarser, size)
        missed = self.reduce(features * (1 - torch.sigmoid(found)))
        inner = self.correct(torch.cat([missed, resized(guidance, size)], dim=1))
        return self.score(inner) + found, inner
