"""CovXNet's units: depthwise convolutions of rising dilation side by side, joined by 1 x 1 convolutions.

Mahmud, Rahman and Fattah (2020), figures 4 and 5: every convolution is followed by a ReLU and then by batch norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOMENTUM = 0.01  # with the epsilon below, of the library that the published code uses


def _norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=momentum)


class Pointwise(nn.Sequential):
    """1 x 1 convolution, ReLU, batch norm: (B, in, H, W) to (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, momentum: float = MOMENTUM) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, 1), nn.ReLU(), _norm(out_channels, momentum))


class Dilated(nn.Module):
    """Depthwise 3 x 3 convolutions of dilation 1 to ``most``, each with its ReLU and batch norm, concatenated.

    (B, C, H, W) to (B, most * C, H, W), or to half the sides with ``halve``: then the maximum of 2 x 2 cells is taken
    before the batch norm.
    """

    def __init__(self, channels: int, most: int, halve: bool = False, momentum: float = MOMENTUM) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for rate in range(1, most + 1):
            depthwise = nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, groups=channels)
            pool = nn.MaxPool2d(2) if halve else nn.Identity()
            self.branches.append(nn.Sequential(depthwise, nn.ReLU(), pool, _norm(channels, momentum)))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class ResidualUnit(nn.Sequential):
    """(B, C, H, W) to the same shape: widen to 2 C, dilated convolutions, back to C, and add the input."""

    def __init__(self, channels: int, most: int, momentum: float = MOMENTUM) -> None:
        super().__init__(
            Pointwise(channels, 2 * channels, momentum),
            Dilated(2 * channels, most, momentum=momentum),
            Pointwise(2 * channels * most, channels, momentum),
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + super().forward(x)


class ShifterUnit(nn.Sequential):
    """(B, C, H, W) to (B, 2 C, H / 2, W / 2): widen to 4 C, halving dilated convolutions, back to 2 C."""

    def __init__(self, channels: int, most: int, momentum: float = MOMENTUM) -> None:
        super().__init__(
            Pointwise(channels, 4 * channels, momentum),
            Dilated(4 * channels, most, True, momentum),
            Pointwise(4 * channels * most, 2 * channels, momentum),
        )


class Branch(nn.Module):
    """CovXNet for one image size, up to its last map.

    A 5 x 5 and a halving 3 x 3 convolution, then levels of ``depth`` residual units; the first level's highest dilation
    is ``most``, each next level's one less, down to 2, with a shifter unit between levels. Widths double from
    ``width``; total stride 2^(most - 1).
    """

    def __init__(self, in_channels: int, most: int, depth: int, width: int = 32, momentum: float = MOMENTUM) -> None:
        super().__init__()
        if most < 2 or depth < 1 or width < 2:
            raise ValueError(
                "a branch needs a dilation of 2 or more, at least one unit a level and a width of 2 or more"
            )
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width // 2, 5, padding=2),
            nn.ReLU(),
            _norm(width // 2, momentum),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
            nn.ReLU(),
            _norm(width, momentum),
        )
        units: list[nn.Module] = []
        for rate in range(most, 1, -1):
            units += [ResidualUnit(width, rate, momentum) for _ in range(depth)]
            if rate > 2:
                units.append(ShifterUnit(width, rate, momentum))
                width *= 2
        self.units = nn.Sequential(*units)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out_channels, h, w)."""
        return self.units(self.stem(x))
