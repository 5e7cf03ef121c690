"""MAG-SD: multiscale attention guided augmentation and soft distance regularisation on chest X-rays (paper 001).

"Multiscale Attention Guided Network for COVID-19 Diagnosis Using Chest X-Ray Images": the MA-Net (attention maps from
several layers, summed; attention pooling, eq. 1), mix-up, patching and dimming guided by those maps (eqs. 2 to 4), and
the soft distance regulariser (algorithm 1, eqs. 5 to 7). Where the paper is silent its published code decides; where
the two disagree an option has both readings. A training step looks at each image four times: as it is, and in three
augmented views.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chestflow.errors import ConfigError
from chestflow.losses import soft_distance
from chestflow.losses.soft_distance import regularised_loss
from chestflow.methods.registry import InputSpec, Method, at_least_one, code, ours, paper
from chestflow.nn.attention_pooling import AttentionPooling
from chestflow.nn.backbones import CHANNELS, Backbone, load_weights
from chestflow.nn.input import CxrInput
from chestflow.nn.multiscale_attention import SCALES, MultiscaleAttention, scale_shapes
from chestflow.nn.output import Output
from chestflow.training.attention_augmentation import AugmentationSettings, attention_augment, draw_uniforms
from chestflow.training.augmentation import random_subset
from chestflow.training.phases import Augmentation, Batch, LossFunction, Phase
from chestflow.training.samplers import uniform

MIN_SIDE = 64
#: the paper's letters -> kinds of attention-guided augmentation
VIEWS: dict[str, tuple[str, ...]] = {
    "none": (),
    "AM": ("mix_up",),
    "AM+AD": ("mix_up", "dimming"),
    "AM+AP": ("mix_up", "patching"),
    "AM+AD+AP": ("mix_up", "dimming", "patching"),
}


@dataclass(frozen=True)
class MagSdConfig:
    """Settings of paper 001; each field says where its default comes from."""

    backbone: str = paper("resnet50", "section 4.1", choices=tuple(CHANNELS))
    weights: str | None = ours(None, "`imagenet` downloads; also a state dict's path", paper="imagenet")
    normalise: str = ours("zscore", "the code standardises each image column", choices=("zscore", "zscore_column"))
    scales: tuple[int, ...] = paper((7, 14), "Table 5 and its headline row; section 4.1 has (7, 14, 28)")
    maps: int = paper(32, "M, section 4.1")
    pooling: str = paper("attention", "Table 6", choices=("attention", "attention_max", "gap", "gmp"))
    root_eps: float = ours(1e-6, "the code adds 1e-12 under the root: a gradient of 500,000 near 0")
    feature_scale: float = code(100.0, "times the unit vector before the classifier")
    augmentations: str = paper("AM+AD+AP", "Table 7; none is 0AUG", choices=tuple(VIEWS))
    theta_box: tuple[float, float] = code((0.4, 0.6), "threshold of mix-up and patching")
    theta_dim: tuple[float, float] = code((0.2, 0.5), "threshold of dimming")
    gamma: float = code(0.6, "share of the original in mix-up")
    pad: float = code(0.1, "of the side, around a box")
    dim_value: float = ours(0.1, "printed 00.1; the code multiplies by 0.001")
    dim_rest: float = ours(1.0, "the code multiplies the rest by 1.001", paper=1.0)
    reg: str = paper("soft_distance", "eq. 7; Table 8", choices=soft_distance.REGULARISERS)
    reg_weight: float = paper(1.0, "eq. 7")
    theta: float = paper(0.7, "confidence, algorithm 1")
    confidence: str = code(
        "code", "right and sure; the paper says sure alone", paper="paper", choices=("code", "paper")
    )
    label: str = ours("unit", "smoothed; the code's sums to 0.99", paper="one_hot", choices=soft_distance.LABELS)
    reduction: str = code("sum", "over views", paper="mean", choices=soft_distance.REDUCTIONS)
    forward: str = code("separate", "a pass for each view; joint: one for all", choices=("separate", "joint"))
    basic: str = paper("subset", "Table 2; the code all or none", choices=("subset", "all_or_none", "none"))
    brightness: tuple[float, float] = paper((0.5, 1.0), "Table 2; the code [0.5, 1.5]")
    contrast: tuple[float, float] = paper((0.7, 1.0), "Table 2; the code [0.3, 1.7]")
    crop: tuple[float, float] = code((0.6, 1.0), "share of the area")
    ratio: tuple[float, float] = code((0.75, 1.333), "width over height of the crop")
    rotate: tuple[float, float] = paper((0.0, 120.0), "degrees, Table 2; the code [-120, 120]")
    mirror: bool = paper(True, "Table 2")
    upside_down: bool = paper(True, "Table 2")
    optimiser: str = paper("sgd", "section 4.1", choices=("sgd", "adam"))
    lr: float = paper(1e-3, "section 4.1, at the beginning")
    momentum: float = paper(0.9, "section 4.1")
    nesterov: bool = ours(False, "the code: true", paper=False)
    weight_decay: float = paper(1e-6, "section 4.1; the code 5e-4")
    schedule: str = ours(
        "none", "a decay is implied, none given; the code multistep", choices=("none", "multistep", "cosine")
    )
    batch_size: int = paper(32, "section 4.1")
    accumulate: int = ours(1, "micro-batches a step, for small GPUs")
    epochs: int = paper(100, "section 4.1")
    patience: int | None = ours(None, "the paper has no early stopping")
    monitor: str = ours("macro_f1", "the paper has no validation set")
    clip_norm: float | None = ours(None, "none stated")

    def __post_init__(self) -> None:
        if tuple(self.scales) not in SCALES:
            raise ValueError(f"scales are {self.scales}; choose (7), (7, 14) or (7, 14, 28)")
        at_least_one(self, "maps")
        for name in ("theta_box", "theta_dim", "crop", "theta", "gamma", "pad", "dim_value", "dim_rest"):
            value = getattr(self, name)
            low, high = value if isinstance(value, tuple) else (value, value)
            most = 1.01 if name == "dim_rest" else 1.0
            if not 0 <= low <= high <= most:
                raise ValueError(f"{name} is {value}; it must lie in [0, {most:g}], the lower end first")
        for name in ("brightness", "contrast", "ratio", "rotate"):
            low, high = getattr(self, name)
            if low > high or (name != "rotate" and low <= 0):
                raise ValueError(f"{name} is {(low, high)}; the lower end comes first, and both are above 0")
        if min(self.theta_box[0], self.theta_dim[0], self.crop[0]) <= 0:
            raise ValueError("theta_box, theta_dim and crop must be above 0: a threshold of 0 holds everywhere")
        if self.lr <= 0 or self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise ValueError("lr must be above 0, weight_decay 0 or more, momentum in [0, 1)")
        if self.root_eps <= 0 or self.feature_scale <= 0 or self.reg_weight < 0:
            raise ValueError("root_eps and feature_scale must be above 0, reg_weight 0 or more")
        if self.nesterov and (self.optimiser != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimiser sgd and a momentum above 0")

    @property
    def views(self) -> tuple[str, ...]:
        """The augmentations of a step; none where nothing would compare them."""
        return () if self.reg == "none" or self.reg_weight == 0 else VIEWS[self.augmentations]


class MagSd(nn.Module):
    """The MA-Net.

    Children: ``input``, ``backbone``, ``attention`` (the multiscale generator), ``pooling`` where attention pools, and
    ``classifier``, which has no bias.

    Args:
        channels: of the maps that attention reads, finest first, the backbone's last one at the end.
    """

    def __init__(self, config: MagSdConfig, channels: tuple[int, ...], classes: int = 2) -> None:
        super().__init__()
        self.kind, self.feature_scale = config.pooling, config.feature_scale
        self.input = CxrInput(config.normalise, 1)  # type: ignore[arg-type]
        self.backbone = Backbone(config.backbone, 1)
        self.attention = MultiscaleAttention(channels, config.maps)
        width = channels[-1]
        if self.kind.startswith("attention"):
            self.pooling = AttentionPooling("max" if self.kind == "attention_max" else "avg", config.root_eps)
            width *= config.maps
        self.classifier = nn.Linear(width, classes, bias=False)

    def pooled(self, features: Tensor, maps: Tensor) -> Tensor:
        """(B, C, h, w) and (B, M, h, w) to the vector that is classified: (B, M * C), or (B, C) with gap and gmp."""
        if self.kind == "gap":
            return features.mean((2, 3))
        if self.kind == "gmp":
            return features.amax((2, 3))
        return self.pooling(features, maps) * self.feature_scale

    def forward(self, image: Tensor, lung: Tensor | None = None, *, normalised: bool = False) -> Output:
        """(B, 1, H, W) in [0, 255] to logits, maps (B, M, h, w) and their mean; the lung mask is not used.

        Args:
            normalised: the image has been through ``input`` already, as augmented views have.

        Raises:
            ValueError: the image is too small, or the maps' sizes do not divide.
        """
        if min(image.shape[2:]) < MIN_SIDE:
            raise ValueError(f"mag_sd needs images of at least {MIN_SIDE} pixels a side, got {tuple(image.shape)}")
        pyramid = self.backbone.pyramid(image if normalised else self.input(image))
        features = pyramid[-1]
        maps = self.attention(pyramid[-len(self.attention.branches) :])
        return Output(
            self.classifier(self.pooled(features, maps)),
            features=features,
            attention=maps.mean(1, keepdim=True),
            embedding=features.mean((2, 3)),
            maps=maps,
        )


def loss(config: MagSdConfig) -> LossFunction:
    """Cross entropy of the raw images and the regulariser of their views (eq. 7).

    Batch norm sees the views too: in ``separate`` each view is normalised by its own batch's statistics, in ``joint``
    all views by those of their union.
    """
    settings = AugmentationSettings(
        config.theta_box, config.theta_dim, config.gamma, config.pad, config.dim_value, config.dim_rest
    )

    def compute(network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        image = network.input(batch.image)  # type: ignore[operator]
        raw: Output = network(image, normalised=True)
        views = None
        if config.views:
            assert raw.maps is not None
            uniforms = draw_uniforms(len(image), generator, image.device)
            augmented = attention_augment(image, raw.maps.detach(), uniforms, config.views, settings)
            if config.forward == "joint":
                together = network(torch.cat(augmented), normalised=True).logits
                views = together.unflatten(0, (len(augmented), len(image)))
            else:
                views = torch.stack([network(view, normalised=True).logits for view in augmented])
        return regularised_loss(
            raw.logits,
            views,
            batch.target,
            reg=config.reg,
            reg_weight=config.reg_weight,
            theta=config.theta,
            rule=config.confidence,
            label=config.label,
            reduction=config.reduction,
        )

    return compute


def build(config: MagSdConfig, spec: InputSpec) -> MagSd:
    """The network, untrained: pretrained weights come in the phase's preparation, so that rebuilding needs no file.

    Raises:
        ConfigError: the images are too small or are no X-rays, fewer than two classes, or scales that the backbone
            does not have at this size.
    """
    if spec.modality not in METHOD.modalities:
        raise ConfigError(f"mag_sd reads {' or '.join(METHOD.modalities)}, not {spec.modality}: use another recipe")
    if len(spec.shape) != 2 or min(spec.shape) < MIN_SIDE:
        raise ConfigError(f"mag_sd needs images of at least {MIN_SIDE} pixels a side; the recipe makes {spec.shape}")
    if len(spec.classes) < 2:
        raise ConfigError(f"mag_sd needs at least two classes; the task has {spec.classes}")
    shapes = scale_shapes(config.backbone, 1, (spec.shape[0], spec.shape[1]), config.scales)
    return MagSd(config, tuple(channels for channels, _, _ in shapes), len(spec.classes))


def phases(config: MagSdConfig) -> list[Phase]:
    """One phase. With plain pooling nothing teaches the attention generator, so it stays as it was initialised."""

    def optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if config.optimiser == "adam":
            return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
        return torch.optim.SGD(
            parameters, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
        )

    def schedule(stepped: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        if config.schedule == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(stepped, config.epochs)
        milestones = [config.epochs // 2, config.epochs * 5 // 6]  # as the code's 75 and 125 of 150
        return torch.optim.lr_scheduler.MultiStepLR(stepped, milestones)

    def prepare(network: nn.Module, batches: Iterator[Batch]) -> None:
        assert isinstance(network, MagSd)
        if config.weights is not None:
            load_weights(network.backbone, config.weights)

    return [
        Phase(
            name="classify",
            loss=loss(config),
            optimiser=optimiser,
            sampler=uniform,
            epochs=config.epochs,
            batch_size=config.batch_size,
            schedule=None if config.schedule == "none" else schedule,
            trains=() if config.pooling.startswith("attention") else ("backbone", "classifier"),
            augment=basic_augmentation(config),
            prepare=prepare,
            monitor=config.monitor,
            patience=config.patience,
            accumulate=config.accumulate,
            clip_norm=config.clip_norm,
        )
    ]


def basic_augmentation(config: MagSdConfig) -> Augmentation | None:
    """Table 2 on the grey values, before the network standardises them; None where it is off."""
    if config.basic == "none":
        return None
    return random_subset(
        how=config.basic,
        brightness=config.brightness,
        contrast=config.contrast,
        crop=config.crop,
        ratio=config.ratio,
        degrees=config.rotate,
        mirror=config.mirror,
        upside_down=config.upside_down,
    )


METHOD = Method(
    name="mag_sd",
    citation="Multiscale attention guided network with soft distance regularisation (paper 001), eqs. 1 to 7",
    modalities=("cxr", "ct_slice"),
    config=MagSdConfig,
    build=build,
    phases=phases,
)
