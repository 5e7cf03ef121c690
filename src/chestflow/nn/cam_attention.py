"""Classifier whose class activation map is part of the forward pass (paper 004, section II-B, eq. 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CamHead(nn.Module):
    """Global average pooling, a linear layer, and A = ReLU(conv(f, w)) with the linear layer's own weights w.

    The kernel is read from the linear layer at each pass and detached: a loss on A reaches the backbone through f and
    never w, which learns from the classification loss alone. The bias has no part in A.

    Args:
        channels: of the map f.
        outputs: 1 logit, or 2 of which the last is the positive class's.
        attention: make A; without it the head is the plain classifier.
    """

    def __init__(self, channels: int, outputs: int = 1, attention: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, outputs)
        self.attention = attention

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, channels, d, h, w) to logits (B, outputs), pooled vector (B, channels) and A (B, 1, d, h, w) or None."""
        pooled = f.flatten(2).mean(2)
        logits = self.fc(pooled)
        if not self.attention:
            return logits, pooled, None
        kernel = self.fc.weight[-1].detach().view(1, -1, *[1] * (f.ndim - 2))
        conv = F.conv3d if f.ndim == 5 else F.conv2d
        return logits, pooled, torch.relu(conv(f, kernel))
