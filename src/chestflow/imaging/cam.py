"""Heat maps: Grad-CAM, interpolation to the picture, scaling to [0, 1]; for images and volumes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from chestflow.nn.output import Output


def grad_cam(output: Output, class_index: int) -> Tensor:
    """Grad-CAM of one class: ReLU of the last map weighted by its mean gradients, (B, 1, h, w) or (B, 1, d, h, w).

    Each sample's map is its own only in eval mode, where batch norm does not mix samples.

    Args:
        output: of a forward pass with gradients, with ``features``.
        class_index: among the task's classes; with a single logit, 1 is the positive class and 0 its complement.

    Raises:
        ValueError: no features, no gradients to them, or a class that does not exist.
    """
    features, logits = output.features, output.logits
    if features is None:
        raise ValueError("this network returns no features; Grad-CAM cannot be made")
    if not (features.requires_grad and logits.requires_grad):
        raise ValueError("Grad-CAM needs gradients: run the forward pass under torch.enable_grad()")
    classes = max(2, logits.shape[1])
    if not 0 <= class_index < classes:
        raise ValueError(f"class {class_index} does not exist; there are {classes}")
    if logits.shape[1] == 1:
        score = logits[:, 0] if class_index == 1 else -logits[:, 0]
    else:
        score = logits[:, class_index]
    (gradient,) = torch.autograd.grad(score.sum(), features, retain_graph=True)
    weights = gradient.flatten(2).mean(2)  # (B, F)
    return torch.relu(torch.einsum("bf,bf...->b...", weights, features))[:, None].detach()


def upsample(heat: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, 1, h, w) or (B, 1, d, h, w) to ``size``, linearly."""
    mode = "trilinear" if heat.ndim == 5 else "bilinear"
    return F.interpolate(heat, size, mode=mode, align_corners=False)


def min_max(heat: Tensor, eps: float = 1e-12) -> Tensor:
    """Scale each sample to [0, 1]; a constant map becomes zeros."""
    dims = tuple(range(1, heat.ndim))
    low, high = heat.amin(dims, keepdim=True), heat.amax(dims, keepdim=True)
    return torch.where(high - low > eps, (heat - low) / (high - low).clamp_min(eps), torch.zeros_like(heat))
