"""Context gating: a vector gated by itself (paper 002, section III-E)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ContextGating(nn.Module):
    """F_cg = sigmoid(W F + b) * F with W (n, n).

    W starts from N(0, 1/n) and b from 0, which opens every gate about half; a larger W would saturate them.

    Args:
        dim: n.
        norm: batch-normalise W F instead of adding b (as LOUPE does); the paper has b.
    """

    def __init__(self, dim: int, norm: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim, bias=not norm)
        self.norm = nn.BatchNorm1d(dim) if norm else None
        nn.init.normal_(self.linear.weight, std=dim**-0.5)
        if self.linear.bias is not None:
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n) to (B, n)."""
        gate = self.linear(x)
        norm = self.norm
        if norm is not None and len(x) == 1:  # one row has no statistics of its own
            gate = F.batch_norm(gate, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        elif norm is not None:
            gate = norm(gate)
        return torch.sigmoid(gate) * x
