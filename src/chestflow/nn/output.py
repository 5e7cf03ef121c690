"""What every network returns, and the step from its logits to class probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Output:
    """A forward pass. Logits are raw scores; only ``predict`` turns them into probabilities.

    Attributes:
        logits: (B, C), or (B, 1) for one positive-class logit.
        features: last spatial feature map, (B, F, H, W) or (B, F, D, H, W); Grad-CAM differentiates by it.
        attention: map the network itself makes, (B, 1, h, w) or (B, 1, d, h, w), non-negative; None if it has none.
        embedding: (B, E) vector before the classifier; the distance to it tells unusual inputs.
        maps: (B, M, h, w), non-negative, the attention maps of a network that makes several; None if it makes none.
        projection: (B, P) unit rows that a contrastive loss compares; None outside of a contrastive phase.
    """

    logits: Tensor
    features: Tensor | None = None
    attention: Tensor | None = None
    embedding: Tensor | None = None
    maps: Tensor | None = None
    projection: Tensor | None = None


def class_logits(logits: Tensor) -> Tensor:
    """(B, 1) or (B, C) logits to (B, C >= 2): a single logit z becomes [0, z], whose softmax is [1 - s(z), s(z)]."""
    if logits.shape[1] == 1:
        return torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits
