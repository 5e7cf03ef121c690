"""Capsules: vectors whose length says whether a thing is there, routed by agreement, and the margin loss on lengths.

Sabour, Frosst and Hinton, "Dynamic routing between capsules" (2017): squash (eq. 1), routing (procedure 1), margin
loss (eq. 4). COVID-CAPS' code differs in two points, which are options here: one matrix serves all input capsules, and
an iteration's agreement replaces the one before instead of adding to it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-7


def squash(vectors: Tensor, eps: float = EPS) -> Tensor:
    """(..., D) to vectors of the same direction and a length in [0, 1): |s| becomes |s|^2 / (1 + |s|^2).

    ``eps`` keeps the gradient finite at a zero vector.
    """
    squared = vectors.square().sum(-1, keepdim=True)
    return vectors * ((squared + eps).sqrt() / (1 + squared + eps))


def route(predictions: Tensor, iterations: int = 3, accumulate: bool = False) -> tuple[Tensor, Tensor]:
    """Routing by agreement.

    Args:
        predictions: (B, K, N, D), what each of N input capsules predicts for each of K output capsules.
        iterations: 1 couples all of them equally.
        accumulate: add each iteration's agreement to the ones before (the routing paper), or let it replace them
            (COVID-CAPS' code).

    Returns:
        Output capsules (B, K, D) of length below 1, and the last couplings (B, K, N), which sum to 1 over K.
    """
    agreement = torch.zeros_like(predictions[..., 0])
    for iteration in range(iterations):
        coupling = agreement.softmax(dim=1)
        capsules = squash(torch.einsum("bkn,bknd->bkd", coupling, predictions))
        if iteration < iterations - 1:
            found = torch.einsum("bkd,bknd->bkn", capsules, predictions)
            agreement = agreement + found if accumulate else found
    return capsules, coupling


class CapsuleLayer(nn.Module):
    """(B, N, D_in) capsules to (B, ``count``, ``size``) capsules; one matrix is shared by all N.

    Computed in float32 under mixed precision. Short capsules nearly vanish in a squash, which squares their length:
    with few inputs a ``gain`` above 1 on Glorot's initial weights lets layers in a row start.
    """

    def __init__(
        self,
        in_size: int,
        count: int,
        size: int,
        iterations: int = 3,
        accumulate: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        if min(in_size, count, size, iterations) < 1:
            raise ValueError("capsule counts, sizes and routing iterations must be at least 1")
        self.count, self.size, self.iterations, self.accumulate = count, size, iterations, accumulate
        self.weight = nn.Parameter(torch.empty(count * size, in_size))
        nn.init.xavier_uniform_(self.weight, gain)

    def predictions(self, capsules: Tensor) -> Tensor:
        """(B, N, D_in) to predictions (B, count, N, size)."""
        return F.linear(capsules, self.weight).unflatten(2, (self.count, self.size)).transpose(1, 2)

    def forward(self, capsules: Tensor) -> Tensor:
        """(B, N, D_in) to (B, count, size) of length below 1."""
        kind = capsules.device.type
        # shapes are worked out on the meta device, which has no mixed precision to turn off
        with torch.autocast(kind if torch.amp.is_autocast_available(kind) else "cpu", enabled=False):
            return route(self.predictions(capsules.float()), self.iterations, self.accumulate)[0]


def lengths(capsules: Tensor) -> Tensor:
    """(B, K, D) to (B, K), at least 1e-6 so that their logarithm and its gradient are finite."""
    return (capsules.square().sum(-1) + 1e-12).sqrt()


def margin_loss(
    length: Tensor, target: Tensor, *, present: float = 0.9, absent: float = 0.1, down: float = 0.5
) -> Tensor:
    """T max(0, present - v)^2 + down (1 - T) max(0, v - absent)^2, summed over classes.

    Args:
        length: (B, C) in [0, 1).
        target: int64 (B,), the class that is there.

    Returns:
        (B,) float32.
    """
    length = length.float()
    there = F.one_hot(target, length.shape[1]).to(length.dtype)
    short, long = torch.relu(present - length).square(), torch.relu(length - absent).square()
    return (there * short + down * (1 - there) * long).sum(1)
