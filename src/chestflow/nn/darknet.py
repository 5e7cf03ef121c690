"""Darknet blocks as DarkCovidNet builds them: convolution, batch norm, leaky ReLU.

The published network pads its 1 x 1 convolutions by one pixel as well, so each of them enlarges the map by two in both
directions (a 256 pixel image ends at 13 x 13 and not at 8 x 8). Its parameter count and its table of layer shapes hold
with that padding alone, so it is kept.
"""

from __future__ import annotations

from torch import nn

SLOPE = 0.1


class DarkConv(nn.Sequential):
    """(B, in, H, W) to (B, out, H, W) with a 3 x 3 kernel, to (B, out, H + 2, W + 2) with a 1 x 1 kernel."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(SLOPE),
        )


class TripleConv(nn.Sequential):
    """3 x 3 up to ``out_channels``, 1 x 1 back to ``in_channels``, 3 x 3 up again: (B, in, H, W) to
    (B, out, H + 2, W + 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            DarkConv(in_channels, out_channels),
            DarkConv(out_channels, in_channels, kernel=1),
            DarkConv(in_channels, out_channels),
        )


def dark_body(in_channels: int, widths: tuple[int, ...] = (8, 16, 32, 64, 128, 256)) -> nn.Sequential:
    """The 16 DarkConv layers before the classifier, with a halving after every width but the last.

    The first two widths are single convolutions, the others triples; a 1 x 1 convolution to the width before the last
    and a 3 x 3 one back end the body. (B, in, H, W) to (B, widths[-1], h, w); :func:`map_side` says how large.
    """
    layers: list[nn.Module] = []
    before = in_channels
    for place, width in enumerate(widths):
        layers.append(DarkConv(before, width) if place < 2 else TripleConv(before, width))
        if place < len(widths) - 1:
            layers.append(nn.MaxPool2d(2))
        before = width
    layers += [DarkConv(before, widths[-2], kernel=1), DarkConv(widths[-2], before)]
    return nn.Sequential(*layers)


def map_side(side: int, widths: int = 6) -> int:
    """Length of the last map's side for an image's side, both in pixels; 0 where a halving leaves nothing."""
    for place in range(widths):
        side += 2 * (place >= 2)
        if place < widths - 1:
            side //= 2
        if side == 0:
            return 0
    return side + 2
