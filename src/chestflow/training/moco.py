"""MoCo v2: a backbone learns to tell pictures apart before it sees a label.

He et al., "Momentum contrast for unsupervised visual representation learning" (CVPR 2020), eqs. 1 and 2, with the head,
augmentation and schedule of Chen et al., "Improved baselines with momentum contrastive learning" (2020). Self-Trans (He
et al., "Sample-efficient deep learning for COVID-19 diagnosis based on CT scans", 2020) is this on CT slices.

Two random views of a picture make a query and a key; the query must find its key among the keys of earlier batches,
which a queue keeps. The key encoder follows the query encoder slowly and gets no gradients.

Shuffled keys: queries and keys of one batch could recognise each other by their batch-norm statistics. The published
code deals shuffled keys out over GPUs, whose statistics are their own. Here one process does so by itself: the keys are
shuffled and encoded in ``key_groups`` parts, each normalised apart from the others. (Shuffling alone, without parts,
would change nothing in one process: the statistics of a batch do not depend on its order.)

Small cohorts: a queue about as long as the set holds old keys of the query's own picture. With ``skip_own`` they are
not taken for negatives, about which a training on a million pictures need not care.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.nn.backbones import Backbone
from chestflow.nn.knowledge_input import input_layer
from chestflow.training.phases import Batch, Phase
from chestflow.training.samplers import uniform
from chestflow.training.views import random_view

WIDTH = 128  # of the compared vectors


class Settings(Protocol):
    """One entry of the ``pretraining`` section of params.yaml."""

    cohort: str
    recipe: str
    backbone: str
    channels: int
    normalise: str
    weights: str | None
    epochs: int
    batch: int
    lr: float
    weight_decay: float
    queue: int
    skip_own: bool
    momentum: float
    temperature: float
    key_groups: int
    smallest_crop: float
    seed: int


class Encoder(nn.Module):
    """A backbone, global average pooling, and MoCo v2's head of two layers; the head is thrown away afterwards."""

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.backbone = Backbone(name, channels)
        width = self.backbone.out_channels
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), normalised, to unit vectors (B, 128)."""
        return F.normalize(self.head(self.backbone(x).flatten(2).mean(2)).float(), dim=1)


class MoCo(nn.Module):
    """Query and key encoder and the queue, all in one state, so that an interrupted training goes on from it.

    Children: ``input``, ``query`` (trains), ``key`` (follows). Buffers: ``queue`` (K, 128) of unit rows, the oldest at
    ``place``, and of each the picture it is of, ``rows`` (K,), -1 while it is still a random vector.

    Raises:
        ConfigError: an unknown backbone.
    """

    queue: Tensor
    rows: Tensor
    place: Tensor

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.momentum, self.temperature = settings.momentum, settings.temperature
        self.key_groups, self.skip_own = settings.key_groups, settings.skip_own
        self.input = input_layer(settings.normalise, settings.channels)
        self.query = Encoder(settings.backbone, settings.channels)
        self.key = Encoder(settings.backbone, settings.channels)
        self.align()
        self.register_buffer("queue", F.normalize(torch.randn(settings.queue, WIDTH), dim=1))
        self.register_buffer("rows", torch.full((settings.queue,), -1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def align(self) -> None:
        """Make the key encoder equal to the query encoder, as they start."""
        self.key.load_state_dict(self.query.state_dict())

    @torch.no_grad()
    def follow(self) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q (eq. 2), for parameters; batch-norm statistics stay its own."""
        for ours, theirs in zip(self.key.parameters(), self.query.parameters(), strict=True):
            ours.lerp_(theirs, 1 - self.momentum)

    @torch.no_grad()
    def keys(self, views: Tensor, generator: torch.Generator) -> Tensor:
        """Unit keys (B, 128) of normalised views (B, C, H, W), in their order, encoded in shuffled parts."""
        self.key.train(self.training)  # a phase puts what does not train in eval mode; MoCo's keys use batch statistics
        order = torch.randperm(len(views), generator=generator)
        # a part of one picture has no statistics of its own
        parts = order.tensor_split(max(1, min(self.key_groups, len(views) // 2)))
        found = torch.cat([self.key(views[part.to(views.device)]) for part in parts])
        return found[order.argsort().to(views.device)]

    @torch.no_grad()
    def remember(self, keys: Tensor, rows: Tensor) -> None:
        """Put keys (B, 128) of pictures ``rows`` (B,) in the place of the oldest; of too many, the last ones stay."""
        size = len(self.queue)
        keys, rows = keys[-size:], rows[-size:]
        places = (self.place + torch.arange(len(keys), device=keys.device)) % size
        self.queue[places], self.rows[places] = keys, rows
        self.place.copy_((self.place + len(keys)) % size)

    def compare(self, queries: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        """Logits (B, 1 + K) of eq. 1: each query against its own key (first) and against the queue.

        In float32 under mixed precision.
        """
        with torch.autocast(queries.device.type, enabled=False):
            own = (queries * keys).sum(1, keepdim=True)
            others = queries @ self.queue.clone().t()  # a copy, since the queue changes before gradients are taken
            if self.skip_own:
                others = others.masked_fill(rows[:, None] == self.rows, -torch.inf)
            return torch.cat([own, others], dim=1) / self.temperature


def contrast(smallest_crop: float) -> Callable[[nn.Module, Batch, torch.Generator], dict[str, Tensor]]:
    """InfoNCE of two random views (eq. 1), and the share of queries that find their own key among all.

    The key encoder follows before it encodes, and the queue takes the batch's keys in afterwards, as in MoCo's code.
    """
    view = random_view(smallest_crop)

    def loss(network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        assert isinstance(network, MoCo)
        first, second = (network.input(view(batch.image, generator)) for _ in range(2))
        queries = network.query(first)
        network.follow()
        keys = network.keys(second, generator)
        logits = network.compare(queries, keys, batch.rows)
        own = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        network.remember(keys, batch.rows)
        found = (logits.detach().argmax(1) == 0).float().mean()
        return {"loss": F.cross_entropy(logits.float(), own), "found": found}

    return loss


def phase(settings: Settings) -> Phase:
    """MoCo's training as a phase: SGD with momentum 0.9, a cosine to 0 over all epochs."""

    def optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, settings.lr, momentum=0.9, weight_decay=settings.weight_decay)

    return Phase(
        name="contrast",
        loss=contrast(settings.smallest_crop),
        optimiser=optimiser,
        schedule=lambda stepped: torch.optim.lr_scheduler.CosineAnnealingLR(stepped, settings.epochs),
        sampler=uniform,
        epochs=settings.epochs,
        batch_size=settings.batch,
        trains=("query",),
        monitor="loss",
        mixes_samples=True,
    )
