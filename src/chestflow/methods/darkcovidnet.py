"""DarkCovidNet: a small Darknet for chest X-rays.

Ozturk et al., "Automated detection of COVID-19 cases using deep neural networks with X-ray images", Computers in
Biology and Medicine 121 (2020): 17 convolutions in Darknet-19's manner and one fully connected layer, cross entropy.

Provenance: read from the published notebook (github.com/muhammedtalo/COVID-19, "DarkCovidNet model for Covid-19
No_findings and Pneumonia classes.ipynb"), layer by layer with the shapes and counts that it prints: 1,164,434
parameters with two classes and 1,167,586 with three. Its warp augmentation is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chestflow.methods.registry import InputSpec, Method, code, ours, paper
from chestflow.nn.darknet import dark_body, map_side
from chestflow.nn.input import CxrInput
from chestflow.nn.output import Output
from chestflow.training.augmentation import random_affine
from chestflow.training.phases import Batch, Phase
from chestflow.training.samplers import uniform
from chestflow.training.supervised import cross_entropy, require_pictures

MIN_SIDE = 32
WIDTH = 256


@dataclass(frozen=True)
class DarkCovidNetConfig:
    """Settings of the paper and its notebook; each field says where its default comes from."""

    channels: int = code(3, "RGB", choices=(1, 3))
    normalise: str = code(
        "batch",
        "mean and deviation of the first training batch, as `normalize()` without statistics",
        choices=("batch", "imagenet", "unit", "zscore"),
    )
    lr: float = paper(3e-3, "section 3")
    betas: tuple[float, float] = code((0.9, 0.99), "the library's Adam")
    weight_decay: float = code(0.01, "the library's default, decoupled")
    schedule: str = ours(
        "one_cycle", "up to lr and down; public runs of the code use it", choices=("one_cycle", "none")
    )
    batch_size: int = code(32, "notebook")
    accumulate: int = ours(1, "micro-batches a step, for small GPUs")
    epochs: int = paper(100, "section 3")
    patience: int | None = ours(None, "no early stopping stated")
    monitor: str = ours("auroc", "the paper reports the last epoch")
    clip_norm: float | None = ours(None, "none stated")
    flip: float = code(0.5, "probability of a left-right mirror")
    rotate: float = code(10.0, "degrees either way")
    scale: float = code(0.1, "share either way; the notebook only enlarges")
    brightness: float = code(0.2, "share either way")
    augment: bool = ours(True, "false turns all four off")

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.weight_decay < 0 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError("lr must be above 0, weight_decay 0 or more, both betas in [0, 1)")


class DarkCovidNet(nn.Module):
    """The network for images of one size: its classifier reads every cell of the last map.

    Children: ``input``, ``body`` (16 convolutions), ``head`` (the 17th, to one channel a class), ``classifier``.
    """

    def __init__(self, config: DarkCovidNetConfig, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.size = size
        if config.normalise == "batch":
            # filled from data before the first step; until then as `unit`
            self.input = CxrInput("fixed", config.channels, mean=(0.0,), std=(1.0,))
        else:
            self.input = CxrInput(config.normalise, config.channels)  # type: ignore[arg-type]
        self.body = dark_body(config.channels)
        self.head = nn.Sequential(
            nn.Conv2d(WIDTH, classes, 3, padding=1, bias=False), nn.ReLU(), nn.BatchNorm2d(classes)
        )
        height, width = (map_side(side) for side in size)
        self.classifier = nn.Linear(classes * height * width, classes)

    def forward(self, image: Tensor, lung: Tensor | None = None) -> Output:
        """(B, 1 or 3, H, W) in [0, 255], of the size the network was built for, to logits; the lung mask is not used.

        Raises:
            ValueError: an image of another size.
        """
        if tuple(image.shape[2:]) != self.size:
            raise ValueError(f"images are {tuple(image.shape[2:])}; this DarkCovidNet was built for {self.size}")
        features = self.body(self.input(image))
        cells = self.head(features).flatten(1)  # (B, classes * h * w)
        return Output(self.classifier(cells), features=features, embedding=cells)


def standardise_by_first_batch(network: nn.Module, batches: Iterator[Batch]) -> None:
    """Give the input layer the mean and deviation of the first batch's grey values, in [0, 1]."""
    assert isinstance(network, DarkCovidNet)
    values = next(batches).image.double() / 255
    network.input.mean.fill_(float(values.mean()))
    # an all-black batch must not divide by zero
    network.input.std.fill_(max(float(values.std()), 1e-3))


def build(config: DarkCovidNetConfig, spec: InputSpec) -> DarkCovidNet:
    """The network, untrained.

    Raises:
        ConfigError: the images are too small or are no X-rays, or fewer than two classes.
    """
    require_pictures("darkcovidnet", spec, MIN_SIDE)
    return DarkCovidNet(config, (spec.shape[0], spec.shape[1]), len(spec.classes))


def phases(config: DarkCovidNetConfig) -> list[Phase]:
    """One phase of cross entropy."""

    def optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)

    def one_cycle(stepped: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        # stepped after each epoch: the last step of the cycle is never trained with, so it has one more
        return torch.optim.lr_scheduler.OneCycleLR(
            stepped, max_lr=config.lr, total_steps=config.epochs + 1, base_momentum=0.85, max_momentum=0.95
        )

    augment = random_affine(
        flip=config.flip, degrees=config.rotate, translate=0.0, scale=config.scale, brightness=config.brightness
    )
    return [
        Phase(
            name="classify",
            loss=cross_entropy,
            optimiser=optimiser,
            sampler=uniform,
            epochs=config.epochs,
            batch_size=config.batch_size,
            schedule=one_cycle if config.schedule == "one_cycle" else None,
            augment=augment if config.augment else None,
            prepare=standardise_by_first_batch if config.normalise == "batch" else None,
            monitor=config.monitor,
            patience=config.patience,
            accumulate=config.accumulate,
            clip_norm=config.clip_norm,
        )
    ]


METHOD = Method(
    name="darkcovidnet",
    citation="DarkCovidNet (Ozturk et al. 2020), 17 convolutions",
    provenance="read from the published notebook, whose layer shapes and parameter count hold; warping is left out",
    modalities=("cxr", "ct_slice"),
    config=DarkCovidNetConfig,
    build=build,
    phases=phases,
)
