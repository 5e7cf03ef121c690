"""AC-CovidNet: COVID-Net with attention gates, trained by supervised contrastive learning (paper 000).

"AC-CovidNet: Attention Guided Contrastive CNN for Recognition of Covid-19 in Chest X-Ray Images", section 3: PEPX
blocks with long-range connections (3.1), attention gates where those meet (3.2), a contrastive stage that trains the
encoder through a projection head (3.3, 3.4), and a second stage that trains a classifier on the frozen encoder. The
published code never hands the trained encoder to its second stage, so the paper's description is what is built here.

The ablations of Table 2 are configurations: without ``gates`` and ``contrastive`` it is COVID-Net, trained in one phase
by cross entropy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.errors import ConfigError
from chestflow.losses.contrastive import npairs, supcon
from chestflow.methods.registry import InputSpec, Method, at_least_one, code, ours, paper
from chestflow.nn.input import CxrInput
from chestflow.nn.output import Output
from chestflow.nn.pepx import PepxStyle, he_init
from chestflow.nn.pepx_encoder import PepxEncoder
from chestflow.training.augmentation import random_affine
from chestflow.training.inference import Inferred
from chestflow.training.monitors import centre_metrics
from chestflow.training.phases import Augmentation, Batch, LossFunction, Phase, Sampler
from chestflow.training.samplers import class_balanced, uniform
from chestflow.training.supervised import cross_entropy, require_pictures

MIN_PER_CLASS = 2


@dataclass(frozen=True)
class AcCovidNetConfig:
    """Settings of paper 000; each field says where its default comes from. The code's images have 480 pixels a side."""

    gates: bool = paper(True, "section 3.2; false is the ablation without attention")
    contrastive: bool = paper(True, "section 3.3; false trains by cross entropy alone, in one phase")
    widths: tuple[int, ...] = code((56, 112, 216, 424), "channels of the stages")
    depths: tuple[int, ...] = code((3, 4, 6, 3), "PEPX blocks of the stages")
    pepx: str = code(
        "repo", "widths inside a block; covidnet: half, three quarters, half", choices=("repo", "covidnet")
    )
    dw_act: bool = code(False, "ReLU after the depthwise convolution")
    norm: str = code("none", "batch: normalisation after each convolution", choices=("none", "batch"))
    block_gain: float = ours(0.1, "of a block's last layer when training begins; 1 drowns the shortcuts, He alone")
    dense_last: bool = code(False, "the last stage's last block sees the one before it alone")
    gate_reading: str = code("multiply", "the paper's text adds the map", paper="add", choices=("multiply", "add"))
    gate_inner: float = ours(1.0, "share of the channels inside a gate; Oktay et al. 0.5")
    final_gate: str = code("repo", "residual: over the sum of all maps", choices=("repo", "residual"))
    channels: int = code(3, "grey is repeated", choices=(1, 3))
    normalise: str = code("unit", "divide by 255", choices=("unit", "imagenet", "zscore", "zscore_column"))
    encoded: int = paper(1024, "section 3.3, width of the encoder's vector")
    hidden: int = code(256, "of the classifier")
    projection: str = paper("mlp", "1024-512-128; linear_relu: the code's one layer", choices=("mlp", "linear_relu"))
    projection_hidden: int = paper(512, "section 3.3")
    projected: int = paper(128, "section 3.3")
    loss: str = paper("supcon", "section 3.4; npairs: the code", choices=("supcon", "npairs"))
    temperature: float = code(0.05, "not in the paper")
    base_temperature: float | None = ours(None, "factor of the loss's first code, which the formula lacks")
    reduction: str = ours(
        "mean", "the paper sums, so that lr depends on the batch", paper="sum", choices=("mean", "sum")
    )
    views: int = ours(1, "augmented views of an image in a contrastive batch", choices=(1, 2))
    sampler: str = ours(
        "class_balanced",
        "uniform batches of 64 lack a second COVID-19 image in 9 %",
        choices=("class_balanced", "uniform"),
    )
    augment: bool = ours(False, "defined in the code, never applied")
    flip: float = code(0.5, "probability of a left-right mirror, where augment is true")
    rotate: float = code(7.2, "degrees either way: 0.02 of a turn")
    translate: float = ours(0.05, "share of the side")
    scale: float = code(0.2, "share either way")
    brightness: float = ours(0.0, "share either way")
    lr: float = paper(1.7e-4, "section 4; the code 1e-3 and 1e-5")
    weight_decay: float = ours(0.0, "none stated")
    schedule: str = ours("none", "none stated", choices=("none", "cosine"))
    batch_size: int = paper(64, "section 4; the code 265 and 32")
    accumulate: int = ours(1, "micro-batches a step with cross entropy; a contrastive batch is never split")
    epochs: int = code(50, "of the contrastive phase")
    classifier_epochs: int = code(50, "of the classifier's phase; of the only one without contrastive")
    patience: int | None = ours(10, "the paper has no validation set")
    monitor: str = ours("macro_sensitivity", "of the classifier's phase")
    clip_norm: float | None = ours(None, "none stated")

    def __post_init__(self) -> None:
        at_least_one(self, "encoded", "hidden", "projection_hidden", "projected")
        if len(self.widths) != len(self.depths) or min((*self.widths, *self.depths), default=0) < 1:
            raise ValueError(f"widths {self.widths} and depths {self.depths} need one number above 0 for each stage")
        if self.gates and min(self.depths[:-1], default=2) < 2:
            raise ValueError("a gate needs at least two blocks in its stage: raise depths, or set gates to false")
        if self.lr <= 0 or self.weight_decay < 0:
            raise ValueError("lr must be above 0, weight_decay 0 or more")
        if self.temperature <= 0 or (self.base_temperature is not None and self.base_temperature <= 0):
            raise ValueError("temperature and base_temperature must be above 0")
        if not 0 < self.gate_inner <= 1:
            raise ValueError(f"gate_inner is {self.gate_inner}; it is a share above 0")
        if self.contrastive and self.views == 2 and not self.augment:
            raise ValueError("two views of an image need augment: true, or they are the same picture")
        _ = self.style

    @property
    def style(self) -> PepxStyle:
        """Of the encoder's blocks."""
        return PepxStyle(self.pepx, self.dw_act, self.norm, self.block_gain)  # type: ignore[arg-type]


class AcCovidNet(nn.Module):
    """The network. Children: ``input``, ``encoder``, ``classifier`` and, until the contrastive phase is over,
    ``projection``."""

    projection: nn.Sequential | None

    def __init__(self, config: AcCovidNetConfig, size: tuple[int, int], classes: int = 3) -> None:
        super().__init__()
        self.input = CxrInput(config.normalise, config.channels)  # type: ignore[arg-type]
        self.encoder = PepxEncoder(
            size,
            config.channels,
            config.widths,
            config.depths,
            config.encoded,
            gates=config.gates,
            inner=config.gate_inner,
            reading=config.gate_reading,  # type: ignore[arg-type]
            final_gate=config.final_gate,  # type: ignore[arg-type]
            dense_last=config.dense_last,
            style=config.style,
        )
        last = nn.Linear(config.hidden, classes)
        self.classifier = nn.Sequential(nn.Linear(config.encoded, config.hidden), nn.ReLU(), last)
        self.projection = _projection(config) if config.contrastive else None
        he_init(self)
        # a small last layer: the first answers are near the uniform ones, as cross entropy expects
        nn.init.normal_(last.weight, std=0.01)

    def forward(self, image: Tensor, lung: Tensor | None = None) -> Output:
        """(B, 1 or 3, H, W) in [0, 255], of the size the network was made for, to logits; the lung mask is not used.

        ``embedding`` is h (B, encoded) >= 0; ``projection`` z (B, projected), unit rows, while its head is there.
        """
        features, h = self.encoder(self.input(image))
        z = None if self.projection is None else F.normalize(self.projection(h).float(), dim=1)
        return Output(self.classifier(h), features=features, embedding=h, projection=z)


def _projection(config: AcCovidNetConfig) -> nn.Sequential:
    if config.projection == "linear_relu":
        return nn.Sequential(nn.Linear(config.encoded, config.projected), nn.ReLU())
    return nn.Sequential(
        nn.Linear(config.encoded, config.projection_hidden),
        nn.ReLU(),
        nn.Linear(config.projection_hidden, config.projected),
    )


def contrastive_loss(config: AcCovidNetConfig, augment: Augmentation | None) -> LossFunction:
    """The loss of the first phase; with two views both are made here, so that they differ."""

    def loss(network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        target = batch.target.repeat(config.views)
        if config.views == 2 and augment is not None:
            pictures = torch.cat([augment(batch, generator).image for _ in range(2)])
        else:
            pictures = batch.image
        z = network(pictures).projection
        if config.loss == "npairs":
            return {"loss": npairs(z, target, config.temperature)}
        base = config.base_temperature
        return {"loss": supcon(z, target, config.temperature, reduction=config.reduction, base_temperature=base)}  # type: ignore[arg-type]

    return loss


def contrastive_sampler(config: AcCovidNetConfig) -> Sampler:
    """Class-balanced batches, or uniform ones."""

    def sample(table: pd.DataFrame, batch_size: int, generator: torch.Generator) -> Iterator[Sequence[int]]:
        chosen = class_balanced(MIN_PER_CLASS) if config.sampler == "class_balanced" else uniform
        return chosen(table, batch_size, generator)

    return sample


def separation(found: Inferred, target: object) -> dict[str, float]:
    """The tune role while the classifier is untrained: how well h separates the classes."""
    return centre_metrics(found.embedding, target)  # type: ignore[arg-type]


def build(config: AcCovidNetConfig, spec: InputSpec) -> AcCovidNet:
    """The network for images of ``spec``.

    Raises:
        ConfigError: images that are too small, or a batch in which some class would lack a positive.
    """
    require_pictures("ac_covidnet", spec, 2 ** (len(config.widths) + 1))
    least = MIN_PER_CLASS * len(spec.classes)
    if (config.contrastive or config.sampler == "class_balanced") and config.batch_size < least:
        raise ConfigError(
            f"batch_size {config.batch_size} leaves a class of {len(spec.classes)} without a pair of its images:"
            f" use at least {least}"
        )
    return AcCovidNet(config, (spec.shape[0], spec.shape[1]), len(spec.classes))


def phases(config: AcCovidNetConfig) -> list[Phase]:
    """The contrastive phase and the classifier's, or one with cross entropy alone."""
    augment = None
    if config.augment:
        augment = random_affine(
            flip=config.flip,
            degrees=config.rotate,
            translate=config.translate,
            scale=config.scale,
            brightness=config.brightness,
        )

    def optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)

    def falling(epochs: int):  # type: ignore[no-untyped-def]
        if config.schedule == "none":
            return None
        return lambda stepped: torch.optim.lr_scheduler.CosineAnnealingLR(stepped, epochs)

    classify = Phase(
        name="classify",
        loss=cross_entropy,
        optimiser=optimiser,
        sampler=contrastive_sampler(config),
        epochs=config.classifier_epochs,
        batch_size=config.batch_size,
        schedule=falling(config.classifier_epochs),
        trains=("classifier",) if config.contrastive else (),
        drops=("projection",) if config.contrastive else (),
        augment=augment,
        monitor=config.monitor,
        patience=config.patience,
        accumulate=config.accumulate,
        clip_norm=config.clip_norm,
    )
    if not config.contrastive:
        return [classify]
    first = Phase(
        name="contrast",
        loss=contrastive_loss(config, augment),
        optimiser=optimiser,
        sampler=contrastive_sampler(config),
        epochs=config.epochs,
        batch_size=config.batch_size,
        schedule=falling(config.epochs),
        trains=("encoder", "projection"),
        augment=None if config.views == 2 else augment,
        monitor="centre_sensitivity",
        measure=separation,
        patience=config.patience,
        clip_norm=config.clip_norm,
        mixes_samples=True,
    )
    return [first, classify]


METHOD = Method(
    name="ac_covidnet",
    citation="AC-CovidNet (paper 000): PEPX blocks and gates, sections 3.1 and 3.2; contrastive loss, section 3.4",
    modalities=("cxr", "ct_slice"),
    config=AcCovidNetConfig,
    build=build,
    phases=phases,
)
