"""The multiscale attention generator of MAG-SD (paper 001, section on the MA-Net)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.errors import ConfigError
from chestflow.nn.backbones import Backbone

#: Paper 001's choices of map sizes at 224 pixels (Table 5): the last map, and up to two finer ones.
SCALES = ((7,), (7, 14), (7, 14, 28))


class MultiscaleAttention(nn.Module):
    """Attention maps A = sum over scales of average-pooled ReLU(BN(1x1 conv(f_s))), non-negative and unbounded.

    The convolution has no bias and the batch norm eps 1e-3; pooling follows the ReLU, as in the paper's code (the paper
    itself names the convolution and the sum alone).

    Args:
        channels: of each feature map, finest first; the last belongs to the map whose size the attention takes.
        maps: M, the number of attention maps.
    """

    def __init__(self, channels: Sequence[int], maps: int = 32) -> None:
        super().__init__()
        if not channels or maps < 1:
            raise ValueError(f"{len(channels)} scales and {maps} maps; both must be at least 1")
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, maps, 1, bias=False), nn.BatchNorm2d(maps, eps=1e-3), nn.ReLU())
            for width in channels
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_s, h_s, w_s), finest first, to attention (B, M, h, w) at the last one's size.

        Raises:
            ValueError: another number of maps, or a map whose size is no multiple of the last one's.
        """
        if len(features) != len(self.branches):
            raise ValueError(f"{len(features)} feature maps for {len(self.branches)} scales")
        height, width = features[-1].shape[2:]
        total: Tensor | None = None
        for branch, feature in zip(self.branches, features, strict=True):
            down, rest = divmod(feature.shape[2], height)
            if rest or feature.shape[3] != down * width:
                raise ValueError(f"a map of {tuple(feature.shape[2:])} cannot be pooled to {(height, width)} evenly")
            attention = branch(feature)
            if down > 1:
                attention = F.avg_pool2d(attention, down)
            total = attention if total is None else total + attention
        assert total is not None
        return total


def pyramid_shapes(backbone: str, in_channels: int, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(channels, height, width) of each map of a backbone's pyramid for images of ``size``, finest first.

    Found on the meta device, so nothing is computed.

    Raises:
        ConfigError: the images are too small for the backbone.
    """
    with torch.device("meta"):
        network = Backbone(backbone, in_channels).eval()
        try:
            maps = network.pyramid(torch.empty(1, in_channels, *size))
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"{backbone} cannot read images of {size[0]} x {size[1]} pixels: {error}") from None
    return [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]


def scale_shapes(
    backbone: str, in_channels: int, size: tuple[int, int], scales: Sequence[int]
) -> list[tuple[int, int, int]]:
    """The shapes of the last ``len(scales)`` maps, finest first, after checking that each divides into the last.

    Args:
        scales: (7,), (7, 14) or (7, 14, 28): the paper's map sizes at 224 pixels. They count maps from the last one
            backwards, whatever the size of the image.

    Raises:
        ConfigError: the backbone has too few maps, or their sizes do not divide.
    """
    shapes = pyramid_shapes(backbone, in_channels, size)
    if len(shapes) < len(scales):
        raise ConfigError(f"{backbone} has {len(shapes)} maps; scales {tuple(scales)} need {len(scales)}")
    chosen = shapes[-len(scales) :]
    sides = [(height, width) for _, height, width in chosen]
    for fine, coarse in pairwise(sides):
        if fine[0] % coarse[0] or fine[1] % coarse[1] or fine[0] * coarse[1] != fine[1] * coarse[0]:
            raise ConfigError(
                f"maps of {backbone} at {size[0]} x {size[1]} pixels are {' and '.join(map(str, sides))}, which do not"
                f" divide evenly for scales {tuple(scales)}: use an image side that is a multiple of 32, or scales (7)"
            )
    return chosen
