"""DECAPS with Peekaboo: capsules with inverted routing that look twice, a comparator of paper 003.

Mobiny et al., "Radiologist-level COVID-19 detection using CT scans with detail-oriented capsule networks" (2020), arXiv
2004.07407.

Provenance: read from the published code (github.com/amobiny/DECAPS_for_COVID19: decaps.py, caps_layers.py, config.py,
train.py). Left out: the pictures of its generative network, which are not published. Different: its three updates a
batch (picture, crop, drop) are one step on the sum of the three losses.

Peekaboo: the class's activation map, scaled to [0, 1], chooses a region. Training also shows the region enlarged (crop)
and the picture without the map's peak (drop), each by a head drawn at random; an answer is the mean of the class poses
of picture and crop, by the mean of all heads.

Logits are the logarithms of the class capsules' lengths: their softmax is each length's share of all lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.imaging.cam import min_max, upsample
from chestflow.methods.registry import InputSpec, Method, at_least_one, code, ours
from chestflow.nn.backbones import PYRAMID_CHANNELS, Backbone, load_weights
from chestflow.nn.capsules import lengths
from chestflow.nn.detail_capsules import ClassCapsules, PrimaryCapsules, WindowCapsules, crop_to
from chestflow.nn.input import CxrInput
from chestflow.nn.output import Output
from chestflow.training.augmentation import random_affine
from chestflow.training.phases import Batch, Phase
from chestflow.training.samplers import uniform
from chestflow.training.supervised import require_pictures

#: The map of the backbone's last but one resolution, of stride 16, must keep a cell after two windows of 3 x 3.
MIN_SIDE = 80
BACKBONES = ("resnet18", "resnet34", "resnet50", "densenet121", "densenet169", "densenet201")
#: What is used of them; the rest stays as it is.
_RESNET = ("conv1", "bn1", "layer1", "layer2", "layer3")
_DENSENET = ("conv0", "norm0", "denseblock1", "transition1", "denseblock2", "transition2", "denseblock3")


@dataclass(frozen=True)
class DecapsConfig:
    """Settings of the published code, whose pictures have 448 pixels a side."""

    peekaboo: bool = code(True, "false answers and trains on the whole picture alone")
    backbone: str = code("resnet50", "up to its map of stride 16; densenet121 too", choices=BACKBONES)
    weights: str | None = ours(None, "`imagenet` downloads; also a state dict's path", paper="imagenet")
    channels: int = code(3, "grey is repeated", choices=(1, 3))
    normalise: str = ours("imagenet", "as ImageNet's weights want", choices=("imagenet", "unit", "zscore"))
    width: int = code(512, "A: channels before the capsules")
    capsules: tuple[int, int, int] = code((32, 32, 32), "B, C, D: kinds of capsules; D is the number of heads")
    routings: int = code(3, "iterations")
    crop: float = code(0.5, "theta_c: the region above is enlarged")
    drop: float = code(0.7, "theta_d: the region above is blackened")
    min_side: int = ours(16, "pixels of a crop at least")
    margin_first: float = code(0.2, "spread loss, in the first epoch")
    margin_step: float = code(0.1, "more each epoch")
    margin_last: float = code(0.9, "at most")
    lr: float = code(1e-5, "Adam")
    beta: float = code(0.5, "Adam's first")
    batch_size: int = ours(16, "the code's help; its default is 1")
    epochs: int = code(500, "config.py")
    patience: int | None = ours(None, "the best epoch counts in any case")
    monitor: str = ours("auroc", "the paper takes the mean of the best five checkpoints")
    augment: bool = ours(True, "mirror, 10 degrees, 5% shift, 10% size and brightness")

    def __post_init__(self) -> None:
        at_least_one(self, "width", "routings", "min_side")
        if min(self.capsules) < 1:
            raise ValueError(f"capsules is {self.capsules}; each must be at least 1")
        if not 0 <= self.crop < 1 or not 0 < self.drop <= 1:
            raise ValueError(f"crop is {self.crop} and drop {self.drop}; maps lie in [0, 1]")
        if not 0 < self.margin_first <= self.margin_last <= 1 or self.margin_step < 0:
            raise ValueError("margins must satisfy 0 < margin_first <= margin_last <= 1, margin_step 0 or more")
        if self.lr <= 0 or not 0 <= self.beta < 1:
            raise ValueError("lr must be above 0 and beta in [0, 1)")


@dataclass
class Look(Output):
    """One look: also class poses (B, K, 16) and the heads' activation maps (B, K, A, h, w)."""

    poses: Tensor = field(default_factory=lambda: torch.empty(0))
    heads: Tensor = field(default_factory=lambda: torch.empty(0))


class Decaps(nn.Module):
    """Children: ``input``, ``backbone`` (its last stage is not used), ``stem``, ``primary``, ``middle`` (two layers),
    ``classes``. Buffers ``steps`` (done) and ``epoch_steps`` (of an epoch) say how large the loss's margin is."""

    steps: Tensor
    epoch_steps: Tensor

    def __init__(self, config: DecapsConfig, classes: int) -> None:
        super().__init__()
        first, second, heads = config.capsules
        self.peekaboo, self.crop, self.min_side = config.peekaboo, config.crop, config.min_side
        self.input = CxrInput(config.normalise, config.channels)  # type: ignore[arg-type]
        self.backbone = Backbone(config.backbone, config.channels)
        width = PYRAMID_CHANNELS[config.backbone][-2]
        self.stem = nn.Sequential(nn.Conv2d(width, config.width, 1), nn.BatchNorm2d(config.width, eps=1e-3), nn.ReLU())
        self.primary = PrimaryCapsules(config.width, first)
        layers = [WindowCapsules(first, second, 3, config.routings), WindowCapsules(second, heads, 3, config.routings)]
        self.middle = nn.Sequential(*layers)
        self.classes = ClassCapsules(heads, classes, config.routings)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epoch_steps", torch.ones((), dtype=torch.int64))

    def look(self, image: Tensor) -> Look:
        """(B, 1 or 3, H, W) in [0, 255], seen as it is."""
        features = self.backbone.pyramid(self.input(image))[-2]
        kind = image.device.type
        with torch.autocast(kind if torch.amp.is_autocast_available(kind) else "cpu", enabled=False):
            capsules = self.middle(self.primary(self.stem(features.float())))
            poses, heads = self.classes(capsules)
        vector = capsules.mean((1, 2)).flatten(1)
        return Look(lengths(poses).log(), features, heads.mean(2)[:, -1:], vector, poses=poses, heads=heads)

    def forward(self, image: Tensor, lung: Tensor | None = None, *, once: bool = False) -> Look:
        """(B, 1 or 3, H, W) in [0, 255], at least 80 pixels a side, to logits; the lung mask is not used.

        The attention is the mean of the heads' maps for the last class in the whole picture. The embedding is each
        head's mean pose, (B, A * 16).

        Args:
            image: the pictures.
            lung: not read.
            once: leave the second look out, for training, whose loss takes looks of its own.
        """
        whole = self.look(image)
        if once or not self.peekaboo:
            return whole
        called = whole.logits.argmax(1)
        of = whole.heads.mean(2).detach()  # (B, K, h, w)
        seen = upsample(min_max(of[torch.arange(len(of), device=of.device), called][:, None]), tuple(image.shape[2:]))
        near = self.look(crop_to(image, seen > self.crop, self.min_side))
        poses = (whole.poses + near.poses) / 2
        assert whole.embedding is not None and near.embedding is not None  # noqa: PT018
        vector = (whole.embedding + near.embedding) / 2
        return replace(whole, logits=lengths(poses).log(), embedding=vector, poses=poses)


def spread_loss(length: Tensor, target: Tensor, margin: Tensor | float) -> Tensor:
    """Mean over samples of sum over the other classes of max(0, margin - (v_target - v_other))^2.

    The code sums over all classes and takes the constant off that the target's own term then is; this is the same.

    Args:
        length: (B, K) in [0, 1).
        target: int64 (B,).
    """
    own = length.gather(1, target[:, None])
    short = torch.relu(margin - (own - length)).square()
    return (short * (1 - F.one_hot(target, length.shape[1]).to(short.dtype))).sum(1).mean()


def build(config: DecapsConfig, spec: InputSpec) -> Decaps:
    """The network, untrained; pretrained weights come in the phase's preparation.

    Raises:
        ConfigError: the images are too small or are volumes, or fewer than two classes.
    """
    require_pictures("decaps", spec, MIN_SIDE)
    return Decaps(config, len(spec.classes))


def phases(config: DecapsConfig) -> list[Phase]:
    """One phase of the spread loss, of picture, crop and drop."""

    def prepare(network: nn.Module, batches: Iterator[Batch]) -> None:
        assert isinstance(network, Decaps)
        if config.weights is not None:
            load_weights(network.backbone, config.weights)
        count = sum(len(batch.image) for batch in batches)
        network.epoch_steps.fill_(max(1, -(-count // config.batch_size)))

    def loss(network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        target, steps, epoch = batch.target, network.steps, network.epoch_steps
        assert isinstance(steps, Tensor) and isinstance(epoch, Tensor)  # noqa: PT018
        margin = (config.margin_first + config.margin_step * (steps // epoch)).clamp_max(config.margin_last)
        whole: Look = network(batch.image, once=True)
        views = {"picture": whole}
        if config.peekaboo:
            heads = whole.heads.detach()
            drawn = torch.randint(heads.shape[2], (len(heads),), generator=generator).to(heads.device)
            chosen = heads[torch.arange(len(heads), device=heads.device), target, drawn][:, None]
            seen = upsample(min_max(chosen), tuple(batch.image.shape[2:]))
            views["crop"] = network(crop_to(batch.image, seen > config.crop, config.min_side), once=True)
            views["drop"] = network(batch.image * (seen <= config.drop), once=True)
        parts = {name: spread_loss(lengths(view.poses), target, margin) for name, view in views.items()}
        steps.add_(1)
        return {"loss": torch.stack(list(parts.values())).sum(), **{k: v.detach() for k, v in parts.items()}}

    trunk = _RESNET if config.backbone.startswith("resnet") else tuple(f"features.{layer}" for layer in _DENSENET)

    def optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=config.lr, betas=(config.beta, 0.999))

    return [
        Phase(
            name="classify",
            loss=loss,
            optimiser=optimiser,
            sampler=uniform,
            epochs=config.epochs,
            batch_size=config.batch_size,
            trains=(*(f"backbone.trunk.{layer}" for layer in trunk), "stem", "primary", "middle", "classes"),
            augment=random_affine() if config.augment else None,
            prepare=prepare,
            monitor=config.monitor,
            patience=config.patience,
        )
    ]


METHOD = Method(
    name="decaps",
    citation="DECAPS with Peekaboo (Mobiny et al. 2020), comparator of paper 003",
    modalities=("ct_slice",),
    config=DecapsConfig,
    build=build,
    phases=phases,
    provenance="read from the published code; without its generated pictures, and its three updates a batch are one",
)
