"""COVID-CAPS: four convolutions and three capsule layers for chest X-rays.

Afshar et al., "COVID-CAPS: a capsule network-based framework for identification of COVID-19 cases from X-ray images",
Pattern Recognition Letters 138 (2020), arXiv 2004.02696: routing by agreement, margin loss, the loss of each class
weighted by the share of the others.

Provenance: read from the published code (github.com/ShahinSHH/COVID-CAPS, binary.py and preprocess.py), which has
295,488 values with two classes: 295,360 that train and 128 statistics of its batch norm. Its pre-training on NIH
X-rays is not done here.

Logits are the logarithms of the class capsules' lengths: their softmax is each length's share of all lengths, and the
longest capsule is the answer, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chestflow.methods.registry import InputSpec, Method, at_least_one, code, ours, paper
from chestflow.nn.capsules import CapsuleLayer, lengths, margin_loss
from chestflow.nn.input import CxrInput
from chestflow.nn.output import Output
from chestflow.training.augmentation import random_affine
from chestflow.training.phases import Batch, Phase
from chestflow.training.samplers import uniform
from chestflow.training.supervised import require_pictures

MIN_SIDE = 16


@dataclass(frozen=True)
class CovidCapsConfig:
    """Settings of the paper and its code; each field says where its default comes from."""

    channels: int = code(3, "binary.py", choices=(1, 3))
    normalise: str = code("unit", "preprocess.py divides by 255", choices=("unit", "imagenet", "zscore"))
    width: int = code(64, "of the first two convolutions; the last two have twice as many")
    capsules: int = code(32, "in each of the two inner layers")
    capsule_size: int = code(8, "of the inner capsules")
    class_size: int = code(16, "of the class capsules")
    routings: int = code(3, "binary.py")
    accumulate_agreement: bool = code(False, "the code replaces the agreement; true adds, as the routing paper")
    gain: float = code(1.0, "of the capsules' initial weights; about 3 lets images below 100 pixels start sooner")
    norm_momentum: float = code(0.01, "batch norm; 0.1 for runs of fewer than some 500 steps")
    pool_first: int = ours(1, "average pooling of the image by this factor first, for small machines; 1: none", paper=1)
    margin_present: float = code(0.9, "margin loss")
    margin_absent: float = code(0.1, "margin loss")
    margin_down: float = code(0.5, "margin loss")
    class_weights: bool = paper(True, "1 - the class's share of the training images")
    lr: float = paper(1e-3, "section 3, Adam")
    batch_size: int = paper(16, "section 3")
    accumulate: int = ours(1, "micro-batches a step, for small GPUs")
    epochs: int = paper(100, "section 3")
    patience: int | None = ours(None, "none stated")
    monitor: str = paper("loss", "section 3, the validation set's; here cross entropy of the shares")
    clip_norm: float | None = ours(None, "none stated")
    augment: bool = code(
        False, "binary.py has it turned off; true: mirror, 10 degrees, 5% shift, 10% size and brightness"
    )

    def __post_init__(self) -> None:
        at_least_one(self, "width", "capsules", "capsule_size", "class_size", "routings", "pool_first")
        if not 0 < self.norm_momentum <= 1:
            raise ValueError(f"norm_momentum is {self.norm_momentum}; it must be above 0 and at most 1")
        if self.lr <= 0 or self.gain <= 0:
            raise ValueError("lr and gain must be above 0")
        if not 0 <= self.margin_absent < self.margin_present <= 1 or self.margin_down < 0:
            raise ValueError("margins must satisfy 0 <= margin_absent < margin_present <= 1, margin_down 0 or more")


class CovidCaps(nn.Module):
    """The network. Children: ``input``, ``shrink``, ``stem`` (four convolutions), ``inner`` (two capsule layers),
    ``classes`` (one capsule a class). The buffer ``class_weight`` (C,) weighs the loss."""

    class_weight: Tensor

    def __init__(self, config: CovidCapsConfig, classes: int) -> None:
        super().__init__()
        width, count, size = config.width, config.capsules, config.capsule_size
        how = (config.routings, config.accumulate_agreement, config.gain)
        self.input = CxrInput(config.normalise, config.channels)  # type: ignore[arg-type]
        self.shrink = nn.AvgPool2d(config.pool_first) if config.pool_first > 1 else nn.Identity()
        self.stem = nn.Sequential(
            nn.Conv2d(config.channels, width, 3),
            nn.ReLU(),
            nn.BatchNorm2d(width, eps=1e-3, momentum=config.norm_momentum),
            nn.Conv2d(width, width, 3),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(width, 2 * width, 3),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3),
            nn.ReLU(),
        )
        for layer in self.stem:
            if isinstance(layer, nn.Conv2d):
                assert layer.bias is not None
                nn.init.xavier_uniform_(layer.weight)  # Keras' default; torch's own leaves the capsules too short
                nn.init.zeros_(layer.bias)
        self.inner = nn.Sequential(CapsuleLayer(2 * width, count, size, *how), CapsuleLayer(size, count, size, *how))
        self.classes = CapsuleLayer(size, classes, config.class_size, *how)
        self.register_buffer("class_weight", torch.ones(classes))

    def forward(self, image: Tensor, lung: Tensor | None = None) -> Output:
        """(B, 1 or 3, H, W) in [0, 255] to logits, the logarithms of the class capsules' lengths, at most 0; the lung
        mask is not used.

        Raises:
            ValueError: an image of fewer than 16 pixels a side after ``pool_first``.
        """
        shrunk = self.shrink(self.input(image))
        if min(shrunk.shape[2:]) < MIN_SIDE:
            raise ValueError(
                f"images are {tuple(image.shape[2:])}; COVID-CAPS needs {MIN_SIDE} pixels a side in its stem"
            )
        features = self.stem(shrunk)
        pixels = features.flatten(2).transpose(1, 2)  # (B, h * w, 2 * width): one capsule a cell
        capsules = self.classes(self.inner(pixels))  # (B, C, class_size)
        return Output(lengths(capsules).log(), features=features, embedding=capsules.flatten(1))


def weigh_classes(network: nn.Module, batches: Iterator[Batch]) -> None:
    """Weigh each class by the share of the other classes among the training images."""
    assert isinstance(network, CovidCaps)
    counts = torch.zeros_like(network.class_weight)
    for batch in batches:
        counts += torch.bincount(batch.target, minlength=len(counts)).to(counts)
    network.class_weight.copy_(1 - counts / counts.sum())


def build(config: CovidCapsConfig, spec: InputSpec) -> CovidCaps:
    """The network, untrained.

    Raises:
        ConfigError: the images are too small or are no X-rays, or fewer than two classes.
    """
    require_pictures("covid_caps", spec, MIN_SIDE * config.pool_first)
    return CovidCaps(config, len(spec.classes))


def phases(config: CovidCapsConfig) -> list[Phase]:
    """One phase of the margin loss."""

    def loss(network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        length = network(batch.image, batch.lung).logits.float().exp()
        present, absent, down = config.margin_present, config.margin_absent, config.margin_down
        each = margin_loss(length, batch.target, present=present, absent=absent, down=down)
        weight = network.class_weight
        assert isinstance(weight, Tensor)
        return {"loss": (each * weight[batch.target]).mean()}

    def optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=config.lr)

    return [
        Phase(
            name="classify",
            loss=loss,
            optimiser=optimiser,
            sampler=uniform,
            epochs=config.epochs,
            batch_size=config.batch_size,
            augment=random_affine() if config.augment else None,
            prepare=weigh_classes if config.class_weights else None,
            monitor=config.monitor,
            patience=config.patience,
            accumulate=config.accumulate,
            clip_norm=config.clip_norm,
        )
    ]


METHOD = Method(
    name="covid_caps",
    citation="COVID-CAPS (Afshar et al. 2020), capsules with routing and margin loss",
    provenance="read from the published code, whose parameter count holds; pre-training on NIH X-rays is left out",
    modalities=("cxr", "ct_slice"),
    config=CovidCapsConfig,
    build=build,
    phases=phases,
)
