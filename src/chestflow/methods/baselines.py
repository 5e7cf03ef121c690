"""Plain convolutional networks of torchvision with their heads replaced: comparators of papers 000, 001 and 002.

``network`` chooses the network. Its last layer is replaced as usual in transfer learning: VGG16 keeps its two fully
connected layers of 4096 and SqueezeNet its 1 x 1 convolution before the pooling; all others get a linear layer on the
pooled map. Options make of them: heads with further fully connected layers (Narin et al.), training of the head alone
(Minaee et al.), DenseNet-121 from CheXNet's weights (CovidAID).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.errors import TrainingError
from chestflow.methods.registry import InputSpec, Method, ours
from chestflow.nn.backbones import CHANNELS, MIN_SIDE, Backbone, load_weights
from chestflow.nn.input import CxrInput
from chestflow.nn.output import Output
from chestflow.training.phases import Batch, Phase
from chestflow.training.supervised import FineTuned, Prepare, classify, require_pictures

#: Dropout before the classifier in torchvision's networks; the others have none.
DROPOUT = {"vgg16": 0.5, "squeezenet1_1": 0.5, "inception_v3": 0.5, "efficientnet_b0": 0.2}
#: Side of the map and width of the two fully connected layers that VGG16 has between its map and its classifier.
VGG_SIDE, VGG_WIDTH = 7, 4096


@dataclass(frozen=True)
class BaselineConfig(FineTuned):
    """Settings of the plain networks."""

    network: str = ours("resnet50", "", choices=tuple(CHANNELS))
    hidden: tuple[int, ...] = ours((), "widths of further fully connected layers; Narin's heads have two")
    head_bias: bool = ours(True, "paper 001's code has none in its ResNets' heads")
    dropout: float | None = ours(None, "before the classifier; null: as the network has it in torchvision")

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden is {self.hidden}; widths are at least 1")
        if self.hidden and self.network == "squeezenet1_1":
            raise ValueError("squeezenet1_1 classifies by a convolution: hidden must be empty")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1), or null")


class Baseline(nn.Module):
    """A backbone and its replaced head.

    Children: ``input``, ``backbone``; of VGG16 ``neck`` (its fully connected layers, torchvision's ``classifier`` up to
    the last); with ``hidden`` the layers of that name; ``head`` (dropout and classifier).
    """

    def __init__(self, config: BaselineConfig, classes: int) -> None:
        super().__init__()
        self.network = config.network
        self.input = CxrInput(config.normalise, config.channels)  # type: ignore[arg-type]
        self.backbone = Backbone(config.network, config.channels)
        width = self.backbone.out_channels
        dropout = DROPOUT.get(config.network, 0.0) if config.dropout is None else config.dropout
        if config.network == "squeezenet1_1":
            self.head = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(width, classes, 1, bias=config.head_bias))
            nn.init.normal_(self.head[1].weight, 0.0, 0.01)  # type: ignore[arg-type]  # as torchvision's
            return
        if config.network == "vgg16":
            self.neck = nn.Sequential(
                *(nn.Linear(width * VGG_SIDE**2, VGG_WIDTH), nn.ReLU(), nn.Dropout(dropout)),
                *(nn.Linear(VGG_WIDTH, VGG_WIDTH), nn.ReLU()),
            )
            width = VGG_WIDTH
        if config.hidden:
            widths = (width, *config.hidden)
            layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
            self.hidden = nn.Sequential(*(layer for pair in layers for layer in pair))
            width = widths[-1]
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, classes, bias=config.head_bias))

    def vector(self, features: Tensor) -> Tensor:
        """(B, D, h, w) to the vector (B, E) that the last layer classifies."""
        if self.network != "vgg16":
            pooled = features.mean((2, 3))
        else:
            if features.shape[2:] != (VGG_SIDE, VGG_SIDE):  # the pooling's gradient races on a GPU: only where needed
                features = F.adaptive_avg_pool2d(features, VGG_SIDE)
            pooled = self.neck(features.flatten(1))
        return self.hidden(pooled) if hasattr(self, "hidden") else pooled

    def forward(self, image: Tensor, lung: Tensor | None = None) -> Output:
        """(B, 1 or 3, H, W) in [0, 255] to logits; the lung mask is not used.

        Raises:
            ValueError: a side is below the network's :data:`~chestflow.nn.backbones.MIN_SIDE`.
        """
        features = self.backbone(self.input(image))
        vector = self.vector(features)
        logits = self.head(features).mean((2, 3)) if self.network == "squeezenet1_1" else self.head(vector)
        return Output(logits, features=features, embedding=vector)


def prepare(weights: str) -> Prepare:
    """Loads the backbone and, of VGG16, its fully connected layers, which lie in the head of torchvision's file."""

    def run(network: nn.Module, batches: Iterator[Batch]) -> None:
        assert isinstance(network, Baseline)
        head = load_weights(network.backbone, weights)
        if network.network == "vgg16":
            state = {key: head.get(f"classifier.{key}") for key in network.neck.state_dict()}
            own = network.neck.state_dict()
            if any(value is None or value.shape != own[key].shape for key, value in state.items()):
                raise TrainingError(f"weights {weights} lack VGG16's fully connected layers: give the whole state dict")
            network.neck.load_state_dict(state)

    return run


def build(config: BaselineConfig, spec: InputSpec) -> Baseline:
    """The network, untrained; pretrained weights come in the phase's preparation.

    Raises:
        ConfigError: the images are too small or are volumes, or fewer than two classes.
    """
    require_pictures(config.network, spec, MIN_SIDE[config.network])
    return Baseline(config, len(spec.classes))


def phases(config: BaselineConfig) -> list[Phase]:
    """One phase of cross entropy; with ``freeze_backbone`` of the head and the layers in ``hidden`` alone."""
    trains = ("hidden", "head") if config.hidden else ("head",)
    return [
        classify(
            config,
            trains=trains if config.freeze_backbone else (),
            prepare=prepare(config.weights) if config.weights else None,
        )
    ]


METHOD = Method(
    name="baselines",
    citation="plain convolutional networks, comparators of papers 000, 001 and 002",
    modalities=("cxr", "ct_slice"),
    config=BaselineConfig,
    build=build,
    phases=phases,
    provenance="read from torchvision's networks and the published scripts of Minaee et al. and CovidAID;"
    " Narin's head is approximated by two fully connected layers",
)
