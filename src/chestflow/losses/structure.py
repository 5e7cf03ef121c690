"""Inf-Net's loss: weighted BCE + weighted IoU on four maps, BCE on the edge (Fan et al., TMI 2020; paper 003).

The weight w = 1 + 5 |avgpool31(m) - m| is high where a pixel differs from its surroundings: on borders and on small
lesions. Everything is computed in float32, whatever comes in: the sums run over 10^5 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from chestflow.nn.inf_net import SegmentationOutput

#: ``applied``: each pixel's BCE is weighted. ``cancelled``: as the published code computes it. Its ``reduce='none'`` is
#: a true value, so that BCE comes as one mean over the batch, and weighing a constant leaves the constant.
Weighting = Literal["applied", "cancelled"]
WINDOW = 31
EMPHASIS = 5.0
UNLABELLED = -1  #: of a pixel whose kind of lesion is not known


def border_weight(mask: Tensor) -> Tensor:
    """w = 1 + 5 |avgpool31(m) - m| (B, 1, H, W) in [1, 6] of a mask in [0, 1].

    The window counts what lies outside the picture as 0, so a full mask weighs more than 1 within 15 pixels of the rim
    and an empty one exactly 1 everywhere.
    """
    mask = mask.float()
    rows = F.avg_pool2d(mask, (WINDOW, 1), stride=1, padding=(WINDOW // 2, 0))  # 62 terms a pixel instead of 961
    around = F.avg_pool2d(rows, (1, WINDOW), stride=1, padding=(0, WINDOW // 2))
    return 1.0 + EMPHASIS * (around - mask).abs()


def weighted_bce(logits: Tensor, mask: Tensor, weight: Tensor, weighting: Weighting = "applied") -> Tensor:
    """Binary cross entropy of each sample, weighted by pixel, (B,); ``cancelled``: the batch's plain mean, B times."""
    bce = F.binary_cross_entropy_with_logits(logits.float(), mask.float(), reduction="none")
    if weighting == "cancelled":
        return bce.mean().expand(len(logits))
    return (weight * bce).flatten(1).sum(1) / weight.flatten(1).sum(1)


def weighted_iou_loss(logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """1 - (sum w p m + 1) / (sum w (p + m) - sum w p m + 1) of each sample, (B,) in [0, 1).

    0 where p = m in {0, 1}. For an empty mask it is 1 - 1 / (1 + sum w p): near 0 only if nothing is predicted.
    """
    p, m = torch.sigmoid(logits.float()), mask.float()
    both = (weight * p * m).flatten(1).sum(1)
    # p + m - 2 p m summed directly: as a difference of two sums it could round below 0
    apart = (weight * (p * (1 - m) + m * (1 - p))).flatten(1).sum(1)
    return apart / (both + apart + 1)


def structure_loss(
    logits: Tensor, mask: Tensor, weighting: Weighting = "applied", weight: Tensor | None = None
) -> Tensor:
    """Weighted BCE + weighted IoU of one map, averaged over the batch; a scalar >= 0.

    Args:
        logits: (B, 1, H, W), any float type.
        mask: the same shape in [0, 1]; values between are soft pseudo labels.
        weighting: of BCE; the IoU's weights are right in the published code.
        weight: :func:`border_weight` of the mask, where several maps share it; None computes it.

    Raises:
        ValueError: shapes differ, or an unknown weighting.
    """
    if weighting not in ("applied", "cancelled"):
        raise ValueError(f"weighting is {weighting!r}; choose applied or cancelled")
    if logits.shape != mask.shape or logits.ndim != 4:
        raise ValueError(f"logits {tuple(logits.shape)} and mask {tuple(mask.shape)} must both be (B, 1, H, W)")
    with torch.autocast(logits.device.type, enabled=False):
        weight = border_weight(mask) if weight is None else weight
        return (weighted_bce(logits, mask, weight, weighting) + weighted_iou_loss(logits, mask, weight)).mean()


def mask_edge(mask: Tensor) -> Tensor:
    """Edge (B, 1, H, W) in {0, 1} of a mask, cut at 0.5: dilation minus erosion by a 3x3 square.

    It is two pixels wide, one on each side, and the picture's rim is no edge. The same as
    :func:`chestflow.imaging.regions.edge_map`, for masks that were augmented on the device.
    """
    binary = (mask > 0.5).float()
    return F.max_pool2d(binary, 3, 1, 1) + F.max_pool2d(-binary, 3, 1, 1)


def kinds_loss(logits: Tensor, labels: Tensor, weighting: Weighting = "applied") -> Tensor:
    """Cross entropy over background and kinds of lesion, a scalar.

    Args:
        logits: (B, classes + 1, H, W).
        labels: long (B, H, W): 0 background, 1 to classes; :data:`UNLABELLED` where the kind is not known.
        weighting: ``applied`` weighs pixels by :func:`border_weight` of the infection as a whole.

    Returns:
        The mean over labelled pixels; 0 with a gradient of 0 where no pixel is labelled.
    """
    with torch.autocast(logits.device.type, enabled=False):
        known = (labels != UNLABELLED).float()
        loss = F.cross_entropy(logits.float(), labels, ignore_index=UNLABELLED, reduction="none")
        weight = known
        if weighting == "applied":
            weight = known * border_weight((labels > 0).float()[:, None])[:, 0]
        return (weight * loss).sum() / weight.sum().clamp_min(1.0)


@dataclass
class SegmentationLoss:
    """The parts of a deeply supervised loss, scalars with gradients.

    Attributes:
        maps: of each of the output's maps, coarse to fine.
        edge: 0 for a network without edge attention.
        kinds: 0 without a second head or without labels for it.
    """

    maps: tuple[Tensor, ...]
    edge: Tensor
    kinds: Tensor

    @property
    def total(self) -> Tensor:
        """All parts with equal weight, as the published code adds them."""
        return torch.stack([*self.maps, self.edge, self.kinds]).sum()


def deep_supervision_loss(
    output: SegmentationOutput,
    mask: Tensor,
    edge: Tensor | None = None,
    labels: Tensor | None = None,
    weighting: Weighting = "applied",
) -> SegmentationLoss:
    """The structure loss of every map, BCE of the edge and, with ``labels``, cross entropy of the kinds.

    Args:
        mask: infection (B, 1, H, W) in [0, 1].
        edge: its border (B, 1, H, W) in {0, 1}; by default :func:`mask_edge` of the mask.
        labels: kinds of lesion, long (B, H, W), see :func:`kinds_loss`.

    Raises:
        ValueError: shapes that do not fit, or labels for a network that tells no kinds.
    """
    if labels is not None and output.kinds is None:
        raise ValueError("labels of kinds need a network with classes of 2 or more")
    weight = border_weight(mask)  # the maps share it: pooling by 31 x 31 costs more than the rest of a map's loss
    maps = tuple(structure_loss(logits, mask, weighting, weight) for logits in output.maps)
    border = kinds = maps[0].new_zeros(())
    if output.edge is not None:
        target = mask_edge(mask) if edge is None else edge
        with torch.autocast(mask.device.type, enabled=False):
            border = F.binary_cross_entropy_with_logits(output.edge.float(), target.float())
    if labels is not None and output.kinds is not None:
        kinds = kinds_loss(output.kinds, labels, weighting)
    return SegmentationLoss(maps, border, kinds)
