"""Bilinear CNN, a comparator of paper 001 (Table 3), plain and with the paper's attention as its second stream.

Bilinear pooling is attention pooling in which a map's own channels are the attention: the mean outer product of the two
streams over space, signed root, unit length, one linear layer. ``second: same`` pools a map with itself: VGG16's
conv5 gives 512 x 512 = 262,144 values. ``second: attention`` is BCNN(Attention): the second stream are the 32 maps of
MAG-SD's multiscale attention (section 5, "multiscale attention and attention pooling were transported to BCNN").
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from chestflow.errors import ConfigError
from chestflow.methods.registry import InputSpec, Method, ours
from chestflow.nn.attention_pooling import AttentionPooling
from chestflow.nn.backbones import CHANNELS, MIN_SIDE, Backbone
from chestflow.nn.input import CxrInput
from chestflow.nn.multiscale_attention import SCALES, MultiscaleAttention, scale_shapes
from chestflow.nn.output import Output
from chestflow.training.phases import Phase
from chestflow.training.supervised import FineTuned, classify, pretrained, require_pictures


@dataclass(frozen=True)
class BcnnConfig(FineTuned):
    """Settings of the bilinear network."""

    backbone: str = ours(
        "vgg16", "as the bilinear CNN's own paper; resnet50 makes 4.2 million values", choices=tuple(CHANNELS)
    )
    second: str = ours("same", "stream that the map is multiplied with", choices=("same", "attention"))
    maps: int = ours(32, "attention maps, as MAG-SD")
    scales: tuple[int, ...] = ours((7, 14), "of the attention, as MAG-SD: map sizes at 224 pixels, the last map first")
    feature_scale: float = ours(100.0, "the unit vector times this, as MAG-SD: one learning rate fits both")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.maps < 1 or self.feature_scale <= 0:
            raise ValueError("maps must be at least 1 and feature_scale above 0")
        if tuple(self.scales) not in SCALES:
            raise ValueError(f"scales are {self.scales}; choose (7), (7, 14) or (7, 14, 28)")


class BilinearCnn(nn.Module):
    """Children: ``input``, ``backbone``, with ``second: attention`` also ``attention``; ``pooling``, ``head``.

    Args:
        size: (height, width) of the images, by which the attention's maps are checked to divide evenly.

    Raises:
        ConfigError: the backbone's maps do not fit the scales.
    """

    def __init__(self, config: BcnnConfig, classes: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.scale, self.scales = config.feature_scale, len(config.scales)
        self.conv5 = config.backbone == "vgg16" and config.second == "same"
        self.input = CxrInput(config.normalise, config.channels)  # type: ignore[arg-type]
        self.backbone = Backbone(config.backbone, config.channels)
        second = self.backbone.out_channels
        if config.second == "attention":
            shapes = scale_shapes(config.backbone, config.channels, size, config.scales)
            self.attention = MultiscaleAttention([channels for channels, _, _ in shapes], config.maps)
            second = config.maps
        self.pooling = AttentionPooling()
        self.head = nn.Linear(second * self.backbone.out_channels, classes)

    def forward(self, image: Tensor, lung: Tensor | None = None) -> Output:
        """(B, 1 or 3, H, W) in [0, 255] to logits; with attention also its maps and their mean.

        Raises:
            ValueError: a side is below the backbone's :data:`~chestflow.nn.backbones.MIN_SIDE`, or the image's maps do
                not divide evenly.
        """
        pyramid = self.backbone.pyramid(self.input(image))
        features = pyramid[-2] if self.conv5 else pyramid[-1]  # before VGG16's last pooling
        maps = self.attention(pyramid[-self.scales :]) if hasattr(self, "attention") else None
        vector = self.pooling(features, features if maps is None else maps)
        mean = None if maps is None else maps.mean(1, keepdim=True)
        # the bilinear vector is too wide for the statistics that tell unusual inputs, which invert its covariance
        embedding = features.mean((2, 3))
        return Output(self.head(self.scale * vector), features=features, attention=mean, embedding=embedding, maps=maps)


def build(config: BcnnConfig, spec: InputSpec) -> BilinearCnn:
    """The network, untrained; pretrained weights come in the phase's preparation.

    Raises:
        ConfigError: the images are too small or are volumes, fewer than two classes, or maps that do not divide.
    """
    require_pictures("bcnn", spec, MIN_SIDE[config.backbone])
    try:
        return BilinearCnn(config, len(spec.classes), (spec.shape[0], spec.shape[1]))
    except ValueError as error:
        raise ConfigError(f"bcnn: {error}") from None


def phases(config: BcnnConfig) -> list[Phase]:
    """One phase of cross entropy."""
    above = (*(("attention",) if config.second == "attention" else ()), "head")
    return [classify(config, trains=above if config.freeze_backbone else (), prepare=pretrained(config.weights))]


METHOD = Method(
    name="bcnn",
    citation="Bilinear CNN (Lin et al. 2015), comparator of paper 001 (Table 3), plain and with the paper's attention",
    modalities=("cxr", "ct_slice"),
    config=BcnnConfig,
    build=build,
    phases=phases,
    provenance="read from the bilinear CNN's public re-implementations (VGG16 up to conv5, signed root, unit length,"
    " linear); the attention variant is approximated from one sentence of paper 001",
)
