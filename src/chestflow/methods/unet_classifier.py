"""U-Net as a classifier, a comparator of paper 001 (Table 3): encoder, decoder to a quarter resolution, pooling.

Each step of the decoder enlarges, joins the encoder's map of that resolution, and convolves twice. Paper 001 does not
describe its head: here the decoder's last map is averaged and classified by one linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.methods.registry import InputSpec, Method, at_least_one, ours
from chestflow.nn.backbones import CHANNELS, MIN_SIDE, PYRAMID_CHANNELS, QUARTER, Backbone
from chestflow.nn.input import CxrInput
from chestflow.nn.output import Output
from chestflow.training.phases import Phase
from chestflow.training.supervised import FineTuned, classify, pretrained, require_pictures


@dataclass(frozen=True)
class UNetConfig(FineTuned):
    """Settings of the U-Net classifier."""

    backbone: str = ours("resnet50", "paper 001 names none for its U-Net", choices=tuple(CHANNELS))
    width: int = ours(128, "channels of the decoder's last map; each coarser step has twice as many")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "width")


def twice(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for width in (in_channels, out_channels):
        layers += [nn.Conv2d(width, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)


class UNetClassifier(nn.Module):
    """Children: ``input``, ``backbone`` (the encoder), ``decoder``, ``head``."""

    def __init__(self, config: UNetConfig, classes: int) -> None:
        super().__init__()
        self.first = QUARTER[config.backbone]
        widths = PYRAMID_CHANNELS[config.backbone][self.first :]
        self.input = CxrInput(config.normalise, config.channels)  # type: ignore[arg-type]
        self.backbone = Backbone(config.backbone, config.channels)
        self.decoder = nn.ModuleList()
        below = widths[-1]
        for step in reversed(range(len(widths) - 1)):
            self.decoder.append(twice(below + widths[step], config.width * 2**step))
            below = config.width * 2**step
        self.head = nn.Linear(config.width, classes)

    def forward(self, image: Tensor, lung: Tensor | None = None) -> Output:
        """(B, 1 or 3, H, W) in [0, 255] to logits; ``features`` is the decoder's map at a quarter resolution.

        Raises:
            ValueError: a side is below the backbone's :data:`~chestflow.nn.backbones.MIN_SIDE`.
        """
        *finer, x = self.backbone.pyramid(self.input(image))[self.first :]
        for block, skip in zip(self.decoder, reversed(finer), strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], dim=1))
        vector = x.mean((2, 3))
        return Output(self.head(vector), features=x, embedding=vector)


def build(config: UNetConfig, spec: InputSpec) -> UNetClassifier:
    """The network, untrained; pretrained weights come in the phase's preparation.

    Raises:
        ConfigError: the images are too small or are volumes, or fewer than two classes.
    """
    require_pictures("unet_classifier", spec, MIN_SIDE[config.backbone])
    return UNetClassifier(config, len(spec.classes))


def phases(config: UNetConfig) -> list[Phase]:
    """One phase of cross entropy."""
    above = ("decoder", "head")
    return [classify(config, trains=above if config.freeze_backbone else (), prepare=pretrained(config.weights))]


METHOD = Method(
    name="unet_classifier",
    citation="U-Net encoder and decoder as a classifier, comparator of paper 001 (Table 3)",
    modalities=("cxr", "ct_slice"),
    config=UNetConfig,
    build=build,
    phases=phases,
    provenance="approximated: a decoder to a quarter resolution over the backbone, the classifier ours (pooling, one"
    " linear layer), because paper 001 describes none",
)
