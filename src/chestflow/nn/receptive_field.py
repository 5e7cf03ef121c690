"""The receptive field block of Inf-Net (Fan et al., TMI 2020), after Liu et al., "Receptive Field Block Net" (2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm, and **no** ReLU.

    Inf-Net's code gives its "BasicConv2d" a ReLU that its forward pass never calls, so between two of them nothing but
    the batch norm stands. We follow the code: where a ReLU is meant, the caller applies it.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], dilation: int = 1) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        # keeps height and width for odd kernels
        padding = (height // 2 * dilation, width // 2 * dilation)
        super().__init__(
            nn.Conv2d(inputs, outputs, (height, width), padding=padding, dilation=dilation, bias=False),
            nn.BatchNorm2d(outputs),
        )


class ReceptiveFieldBlock(nn.Module):
    """Four branches of growing receptive field, joined with a residual and reduced to few channels.

    Branch 0 is 1x1. Branch i > 0 with k = 2 i + 1 is 1x1, 1xk, kx1 and a 3x3 of dilation k, so it sees 3 k pixels and
    more. The four are concatenated, joined by a 3x3, added to a 1x1 of the input; then ReLU.
    """

    def __init__(self, inputs: int, outputs: int = 32) -> None:
        super().__init__()
        branches: list[nn.Module] = [ConvNorm(inputs, outputs, 1)]
        for k in (3, 5, 7):
            branches.append(
                nn.Sequential(
                    ConvNorm(inputs, outputs, 1),
                    ConvNorm(outputs, outputs, (1, k)),
                    ConvNorm(outputs, outputs, (k, 1)),
                    ConvNorm(outputs, outputs, 3, dilation=k),
                )
            )
        self.branches = nn.ModuleList(branches)
        self.join = ConvNorm(len(branches) * outputs, outputs, 3)
        self.residual = ConvNorm(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W), non-negative."""
        joined = self.join(torch.cat([branch(x) for branch in self.branches], dim=1))
        return torch.relu(joined + self.residual(x))
