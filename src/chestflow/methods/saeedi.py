"""Saeedi et al.: features of a frozen DenseNet and a Nu-SVM on chest CT slices, a comparator of paper 003.

Saeedi, Saeedi and Maghsoudi, "A novel and reliable deep learning web-based tool to detect COVID-19 infection from chest
CT-scan" (2020), arXiv 2006.14419; ten-fold cross-validation there (``split.k: 10`` here).

Provenance: read from the published code (github.com/KiLJ4EdeN/COVID_WEB: extract_features.py, evaluate_model.py):
DenseNet-121 of ImageNet, global average, Nu-SVM with radial kernel. That code stops the solver after 176 rounds and
gives classes weights, to which a Nu-SVM does not listen; here it runs to its end.

The SVM is fitted once, before the first step. What the phase then trains is Platt's sigmoid of its decisions, two
numbers. On the images that the SVM was fitted on, decisions are more certain than on others: the order of the answers
does not depend on that, and the calibration on the tune role comes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.errors import ConfigError
from chestflow.methods.registry import InputSpec, Method, code, ours
from chestflow.nn.backbones import CHANNELS, MIN_SIDE, Backbone, load_weights
from chestflow.nn.knowledge_input import input_layer
from chestflow.nn.nu_svm import NuSvm
from chestflow.nn.output import Output
from chestflow.training.phases import Batch, Phase, respond
from chestflow.training.samplers import uniform
from chestflow.training.supervised import require_pictures

NORMALISE = ("imagenet", "selftrans", "unit", "zscore")


@dataclass(frozen=True)
class SaeediConfig:
    """Settings of the comparator; each field says where its default comes from."""

    backbone: str = code("densenet121", "extract_features.py; densenet169 and 201 too", choices=tuple(CHANNELS))
    weights: str | None = ours(None, "`imagenet` downloads; also a state dict's path", paper="imagenet")
    channels: int = code(3, "grey is repeated", choices=(1, 3))
    normalise: str = ours("imagenet", "as ImageNet's weights want; selftrans as a pretraining does", choices=NORMALISE)
    nu: float = code(0.4, "evaluate_model.py")
    gamma: float | None = ours(None, "1 / (features x variance); the code searched for its own", paper=0.00988)
    standardise: bool = ours(True, "else the features of largest spread decide", paper=False)
    lr: float = ours(0.05, "Adam, of Platt's sigmoid alone")
    batch_size: int = ours(32, "")
    epochs: int = ours(10, "of Platt's sigmoid")
    patience: int | None = ours(None, "the best epoch counts in any case")
    monitor: str = ours("loss", "the order of the answers, and so the AUC, is the SVM's in every epoch")

    def __post_init__(self) -> None:
        if not 0 < self.nu <= 1:
            raise ValueError(f"nu is {self.nu}; it must be above 0 and at most 1")
        if self.gamma is not None and self.gamma <= 0:
            raise ValueError(f"gamma is {self.gamma}; it must be above 0, or null for 1 / (features x variance)")
        if self.lr <= 0 or min(self.batch_size, self.epochs) < 1:
            raise ValueError("lr must be above 0, batch_size and epochs at least 1")


class Saeedi(nn.Module):
    """Children: ``input``, ``backbone`` (never trains), ``svm``, ``platt`` (scale and offset of its decisions)."""

    def __init__(self, config: SaeediConfig) -> None:
        super().__init__()
        self.input = input_layer(config.normalise, config.channels)
        self.backbone = Backbone(config.backbone, config.channels)
        self.svm = NuSvm(self.backbone.out_channels)
        self.platt = nn.Linear(1, 1)
        nn.init.ones_(self.platt.weight)
        nn.init.zeros_(self.platt.bias)

    def forward(self, image: Tensor, lung: Tensor | None = None) -> Output:
        """(B, 1 or 3, H, W) in [0, 255] to the logit (B, 1) of COVID-19; the lung mask is not used.

        The embedding is the vector that the SVM sees: the standardised features, (B, E).

        Raises:
            ValueError: a side is below the backbone's :data:`~chestflow.nn.backbones.MIN_SIDE`.
        """
        features = self.backbone(self.input(image))
        vector = self.svm.standardised(features.flatten(2).mean(2))
        return Output(self.platt(self.svm(vector)[:, None]), features=features, embedding=vector)


def prepare(config: SaeediConfig) -> Callable[[nn.Module, Iterator[Batch]], None]:
    """What happens once before the first step: pretrained weights, then the SVM on the training images' features."""

    def run(network: nn.Module, batches: Iterator[Batch]) -> None:
        assert isinstance(network, Saeedi)
        if config.weights is not None:
            load_weights(network.backbone, config.weights)
        network.backbone.eval()
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for batch in batches:
                vectors = network.backbone(network.input(batch.image)).flatten(2).mean(2).double().cpu()
                found.append((batch.rows.cpu(), vectors, batch.target.cpu()))
        rows, vectors, target = (torch.cat(part).numpy() for part in zip(*found, strict=True))
        order = np.argsort(rows, kind="stable")  # the solver's result is that of the pictures, not of their order
        network.svm.fit(vectors[order], target[order], nu=config.nu, gamma=config.gamma, scale=config.standardise)

    return run


def loss(network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """Binary cross entropy of the one logit."""
    logits = respond(network, batch).logits[:, 0].float()
    return {"loss": F.binary_cross_entropy_with_logits(logits, batch.target.float())}


def build(config: SaeediConfig, spec: InputSpec) -> Saeedi:
    """The network, not fitted; pretrained weights and the SVM come in the phase's preparation.

    Raises:
        ConfigError: the images are too small or are volumes, or there are not two classes.
    """
    require_pictures("saeedi", spec, MIN_SIDE[config.backbone])
    if len(spec.classes) != 2:
        raise ConfigError(f"saeedi separates two classes; the task has {', '.join(spec.classes)}: use a binary task")
    return Saeedi(config)


def phases(config: SaeediConfig) -> list[Phase]:
    """One phase: the SVM in its preparation, then Platt's sigmoid."""

    def optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=config.lr)

    return [
        Phase(
            name="platt",
            loss=loss,
            optimiser=optimiser,
            sampler=uniform,
            epochs=config.epochs,
            batch_size=config.batch_size,
            trains=("platt",),
            prepare=prepare(config),
            monitor=config.monitor,
            patience=config.patience,
        )
    ]


METHOD = Method(
    name="saeedi",
    citation="DenseNet features and Nu-SVM (Saeedi et al. 2020), comparator of paper 003",
    modalities=("ct_slice",),
    config=SaeediConfig,
    build=build,
    phases=phases,
    provenance="read from the published code (features and SVM); Platt's sigmoid is ours",
)
