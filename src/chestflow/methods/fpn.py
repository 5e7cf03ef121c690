"""Feature pyramid network as a classifier, a comparator of paper 001 (Table 3).

A 1 x 1 convolution brings every map from a quarter resolution down to one width, each level adds the coarser one,
enlarged; the levels' pooled vectors together are classified. Paper 001 does not describe its head. A 3 x 3 convolution
and a ReLU stand before the pooling: without them the pooled sum is a linear function of the pooled maps, and the way
from coarse to fine would add nothing.
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
class FpnConfig(FineTuned):
    """Settings of the pyramid network."""

    backbone: str = ours("resnet50", "paper 001 names none for its FPN", choices=tuple(CHANNELS))
    width: int = ours(256, "channels of every level, as usual")
    smooth: bool = ours(True, "3 x 3 convolution and ReLU before the pooling; false pools the sums themselves")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "width")


class PyramidClassifier(nn.Module):
    """Children: ``input``, ``backbone``, ``laterals``, with ``smooth`` also ``smoothing``, ``head``."""

    def __init__(self, config: FpnConfig, classes: int) -> None:
        super().__init__()
        self.first = QUARTER[config.backbone]
        widths = PYRAMID_CHANNELS[config.backbone][self.first :]
        self.input = CxrInput(config.normalise, config.channels)  # type: ignore[arg-type]
        self.backbone = Backbone(config.backbone, config.channels)
        self.laterals = nn.ModuleList(nn.Conv2d(width, config.width, 1) for width in widths)
        if config.smooth:
            self.smoothing = nn.ModuleList(nn.Conv2d(config.width, config.width, 3, padding=1) for _ in widths)
        self.head = nn.Linear(len(widths) * config.width, classes)

    def levels(self, maps: list[Tensor]) -> list[Tensor]:
        """The backbone's maps, finest first, to the pyramid's levels (B, width, h, w), finest first."""
        summed: list[Tensor] = []
        for lateral, found in zip(reversed(self.laterals), reversed(maps), strict=True):
            level = lateral(found)
            if summed:
                level = level + F.interpolate(summed[0], size=level.shape[2:], mode="nearest")
            summed.insert(0, level)
        if not hasattr(self, "smoothing"):
            return summed
        return [torch.relu(smooth(level)) for smooth, level in zip(self.smoothing, summed, strict=True)]

    def forward(self, image: Tensor, lung: Tensor | None = None) -> Output:
        """(B, 1 or 3, H, W) in [0, 255] to logits; the lung mask is not used.

        Raises:
            ValueError: a side is below the backbone's :data:`~chestflow.nn.backbones.MIN_SIDE`.
        """
        maps = self.backbone.pyramid(self.input(image))
        vector = torch.cat([level.mean((2, 3)) for level in self.levels(maps[self.first :])], dim=1)
        return Output(self.head(vector), features=maps[-1], embedding=vector)


def build(config: FpnConfig, spec: InputSpec) -> PyramidClassifier:
    """The network, untrained; pretrained weights come in the phase's preparation.

    Raises:
        ConfigError: the images are too small or are volumes, or fewer than two classes.
    """
    require_pictures("fpn", spec, MIN_SIDE[config.backbone])
    return PyramidClassifier(config, len(spec.classes))


def phases(config: FpnConfig) -> list[Phase]:
    """One phase of cross entropy."""
    above = ("laterals", *(("smoothing",) if config.smooth else ()), "head")
    return [classify(config, trains=above if config.freeze_backbone else (), prepare=pretrained(config.weights))]


METHOD = Method(
    name="fpn",
    citation="Feature pyramid network as a classifier, comparator of paper 001 (Table 3)",
    modalities=("cxr", "ct_slice"),
    config=FpnConfig,
    build=build,
    phases=phases,
    provenance="approximated: the pyramid as usual, the classifier ours (pooled levels, one linear layer),"
    " because paper 001 describes none",
)
