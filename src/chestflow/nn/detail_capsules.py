"""Capsules with poses of 4 x 4 on a map, and the head of DECAPS with its inverted dynamic routing.

Mobiny et al., "DECAPS: detail-oriented capsule networks" (2020), arXiv 2007.05343: capsules of one kind form a head; in
the last layer a head's capsules compete with each other for the classes, instead of the classes for each capsule, so
that regions without a message are silenced. What a head passes on to a class at each place is its activation map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.nn.capsules import route, squash

SIDE = 4  # of a pose
POSE = SIDE * SIDE


class PrimaryCapsules(nn.Module):
    """(B, A, h, w) to capsules (B, h, w, ``kinds``, 16), by a 1 x 1 convolution and a squash."""

    def __init__(self, channels: int, kinds: int) -> None:
        super().__init__()
        self.kinds = kinds
        self.pose = nn.Conv2d(channels, kinds * POSE, 1)

    def forward(self, x: Tensor) -> Tensor:
        poses: Tensor = self.pose(x).float()
        return squash(poses.permute(0, 2, 3, 1).unflatten(3, (self.kinds, POSE)))


class WindowCapsules(nn.Module):
    """(B, h, w, A, 16) to (B, h - k + 1, w - k + 1, ``kinds``, 16): each window of k x k is routed by agreement.

    A matrix of 4 x 4 for each place in the window, kind below and kind above; agreements add up.
    """

    def __init__(self, below: int, kinds: int, window: int = 3, iterations: int = 3) -> None:
        super().__init__()
        self.window, self.iterations = window, iterations
        self.weight = nn.Parameter(torch.randn(window * window * below, kinds, SIDE, SIDE))

    def forward(self, capsules: Tensor) -> Tensor:
        k = self.window
        # (B, h', w', A, 16, k, k) to (B h' w', k k A, 4, 4)
        windows = capsules.unfold(1, k, 1).unfold(2, k, 1).permute(0, 1, 2, 5, 6, 3, 4)
        shape = windows.shape[:3]
        poses = windows.reshape(-1, len(self.weight), SIDE, SIDE)
        votes = torch.einsum("naij,akjl->nkail", poses, self.weight).flatten(3)
        found, _ = route(votes, self.iterations, accumulate=True)
        return found.unflatten(0, shape)


def route_inverted(votes: Tensor, iterations: int = 3) -> tuple[Tensor, Tensor]:
    """Inverted dynamic routing.

    Args:
        votes: (B, K, A, N, D), what the capsule of head a at place n says of class k.
        iterations: 1 couples all of them equally.

    Returns:
        Class capsules (B, K, D) of length below 1, and the couplings (B, K, A, N), which sum to 1 over the classes and
        places of each head.
    """
    agreement = torch.zeros_like(votes[..., 0])
    for iteration in range(iterations):
        coupling = agreement.transpose(1, 2).flatten(2).softmax(2).unflatten(2, (votes.shape[1], -1)).transpose(1, 2)
        classes = squash(torch.einsum("bkan,bkand->bkd", coupling, votes))
        if iteration < iterations - 1:
            agreement = agreement + torch.einsum("bkd,bkand->bkan", classes, votes)
    return classes, coupling


class ClassCapsules(nn.Module):
    """(B, h, w, A, 16) to class capsules (B, K, 16) and the heads' activation maps (B, K, A, h, w).

    One matrix of 4 x 4 for each head and class, shared by all places.
    """

    def __init__(self, heads: int, classes: int, iterations: int = 3) -> None:
        super().__init__()
        self.iterations = iterations
        self.weight = nn.Parameter(torch.randn(heads, classes, SIDE, SIDE))

    def forward(self, capsules: Tensor) -> tuple[Tensor, Tensor]:
        place = capsules.shape[1:3]
        poses = capsules.flatten(1, 2).unflatten(3, (SIDE, SIDE))  # (B, N, A, 4, 4)
        votes = torch.einsum("akij,bnajl->bkanil", self.weight, poses).flatten(4)
        classes, coupling = route_inverted(votes, self.iterations)
        passed = (coupling[..., None] * votes).square().sum(-1).add(1e-12).sqrt()
        return classes, passed.unflatten(3, place)


def crop_to(image: Tensor, kept: Tensor, smallest: int) -> Tensor:
    """The box around ``kept`` (B, 1, H, W), at least ``smallest`` pixels a side, enlarged to the whole picture.

    Where nothing is kept the picture stays whole. No value is read from the device, and no gradient flows to the box.

    Args:
        image: (B, C, H, W).
    """
    height, width = image.shape[2:]
    some = kept.flatten(1).any(1)
    extents, centres = [], []
    for dim, size in ((2, width), (3, height)):  # what is kept in any row, then in any column
        line = kept.any(dim)[:, 0].int()  # (B, size)
        first, last = line.argmax(1), size - 1 - line.flip(1).argmax(1)
        extent = ((last - first + 1) / size).clamp_min(min(smallest, size) / size)
        centre = ((first + last + 1) / size - 1).clamp(extent - 1, 1 - extent)
        extents.append(torch.where(some, extent, torch.ones_like(extent)))
        centres.append(torch.where(some, centre, torch.zeros_like(centre)))
    zero = torch.zeros_like(extents[0])
    across = torch.stack([extents[0], zero, centres[0]], dim=1)
    down = torch.stack([zero, extents[1], centres[1]], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1).to(image.dtype), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
