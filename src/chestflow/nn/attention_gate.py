"""The attention gate of paper 000 (section 3.2), after Oktay et al., "Attention U-Net" (2018)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Reading = Literal["multiply", "add"]


class AttentionGate(nn.Module):
    """Weighs ``x`` by how well it fits a gating signal: one coefficient a pixel, for all channels.

    a = sigmoid(psi(ReLU(theta(x) + phi(g)))), all of them 1x1 convolutions with bias; out = x * a.

    Args:
        channels: of ``x`` and ``g``.
        inner: channels of theta and phi; the default is ``channels``, Oktay et al. take half.
        reading: ``multiply``, as Oktay et al. and the paper's code; ``add``, as the paper's text: out = x + a. A
            sigmoid that is added cannot suppress anything.
    """

    def __init__(self, channels: int, inner: int | None = None, reading: Reading = "multiply") -> None:
        super().__init__()
        if reading not in ("multiply", "add"):
            raise ValueError(f"reading is {reading!r}; choose multiply or add")
        inner = channels if inner is None else inner
        if inner < 1:
            raise ValueError(f"inner is {inner}; a gate needs at least one channel inside")
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.psi = nn.Conv2d(inner, 1, 1)
        self.reading = reading

    def coefficients(self, x: Tensor, g: Tensor) -> Tensor:
        """(B, channels, H, W) and (B, channels, h, w) to (B, 1, H, W) in (0, 1).

        What the two differ in size, the signal's projection is resampled bilinearly to ``x``.
        """
        signal = self.phi(g)
        if signal.shape[2:] != x.shape[2:]:
            signal = F.interpolate(signal, size=x.shape[2:], mode="bilinear", align_corners=False)
        return torch.sigmoid(self.psi(torch.relu(self.theta(x) + signal)))

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """(B, channels, H, W), gated."""
        weight = self.coefficients(x, g)
        return x * weight if self.reading == "multiply" else x + weight
