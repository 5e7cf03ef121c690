"""Inf-Net: infection in a CT slice, with reverse attention, edge attention and deep supervision.

Fan et al., "Inf-Net: Automatic COVID-19 Lung Infection Segmentation from CT Images" (TMI 2020), the mask generator of
paper 003, as its published code has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from chestflow.errors import ConfigError
from chestflow.nn import backbones, res2net
from chestflow.nn.input import CxrInput
from chestflow.nn.partial_decoder import PartialDecoder
from chestflow.nn.receptive_field import ConvNorm, ReceptiveFieldBlock
from chestflow.nn.reverse_attention import EdgeAttention, ReverseAttention, resized

InfNetBackbone = Literal["res2net50", "resnet18", "resnet34", "resnet50"]
#: backbone -> channels at strides 4, 8, 16 and 32.
WIDTHS: dict[str, tuple[int, ...]] = {
    "res2net50": (256, 512, 1024, 2048),
    **{name: backbones.PYRAMID_CHANNELS[name] for name in ("resnet18", "resnet34", "resnet50")},
}
MULTIPLE = 32  #: of which both sides must be
MIN_SIDE = 64  #: at 32 the last map is one cell, which batch norm cannot train on with one image
_REVERSE_INNER = 64  # channels of the two finer reverse-attention stages


@dataclass
class SegmentationOutput:
    """Logits of a segmentation network, all at the input's height and width.

    Attributes:
        maps: infection logits (B, 1, H, W), coarse to fine: the partial decoder's global map S5, then the
            reverse-attention stages' S4, S3 and S2, and S1 where there is a fourth.
        edge: logits (B, 1, H, W) of the infection's border; None of a network without edge attention.
        kinds: softmax logits (B, classes + 1, H, W): background, then each kind of lesion; None with one class.
        features: what the finest map was made from, (B, F, h, w).
    """

    maps: tuple[Tensor, ...]
    edge: Tensor | None = None
    kinds: Tensor | None = None
    features: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """The finest map, which is the answer: (B, 1, H, W)."""
        return self.maps[-1]

    def probability(self) -> Tensor:
        """Of infection, (B, 1, H, W) float32 in (0, 1); not rescaled, so that an empty answer stays empty."""
        return torch.sigmoid(self.logits.float())

    def kind(self) -> Tensor:
        """The kind of lesion in each pixel, (B, H, W) long: 0 outside the infection, 1 to ``classes`` inside.

        The finest map says where infection is, the second head only which kind it is; so the two never disagree.

        Raises:
            ValueError: the network has one class.
        """
        if self.kinds is None:
            raise ValueError("the network tells infection alone: build it with classes of 2 or more for kinds")
        infected = self.logits[:, 0] > 0
        return torch.where(infected, self.kinds[:, 1:].argmax(1) + 1, torch.zeros_like(infected, dtype=torch.long))


class InfNet(nn.Module):
    """Inf-Net on Res2Net-50 (the paper's), or on a ResNet for small machines.

    Stem and first stage feed the edge branch; the other three stages pass receptive field blocks into the partial
    decoder, whose map then runs through three reverse-attention stages from coarse to fine.

    Args:
        backbone: ``res2net50`` (v1b 26w4s) or a ``resnet``; ``resnet18`` is the sibling for two-core machines, with a
            quarter of the channels in the coarsest reverse-attention stage too.
        classes: kinds of lesion. 1 tells infection alone. With 2 (ground glass, consolidation) a second head beside
            the paper's finest map S2 tells kinds; it reads that map's features, the finest receptive field block and
            the found infection, whose gradient is cut, as the paper's own second network reads the first one's result.
        channel: of the receptive field blocks.
        weights: path of a state dict of the backbone (timm's ``res2net50d`` or the authors' v1b file; torchvision's for
            a resnet, for which ``imagenet`` works too); None starts from random numbers.
        score_norm: end the maps' and the edge's last convolutions in a batch norm, as the published code does. False
            lets their logits grow within few steps, for short trainings from random numbers.
        fourth: a reverse-attention stage more, on the first stage's maps of stride 4. The paper's finest map has
            stride 8, a cell of which is as large as a lesion on pictures of about 100 pixels.

    Raises:
        ConfigError: an unknown backbone, ``imagenet`` for Res2Net, or a number below 1.
        TrainingError: weights that are missing, damaged or of another network.
    """

    def __init__(
        self,
        backbone: InfNetBackbone = "res2net50",
        classes: int = 1,
        channel: int = 32,
        weights: str | Path | None = None,
        score_norm: bool = True,
        fourth: bool = False,
    ) -> None:
        super().__init__()
        if backbone not in WIDTHS:
            raise ConfigError(f"backbone {backbone!r} does not carry Inf-Net; choose one of {', '.join(WIDTHS)}")
        if classes < 1 or channel < 1:
            raise ConfigError(f"classes is {classes} and channel {channel}; Inf-Net needs at least 1 of each")
        self.classes = classes
        self.input = CxrInput("imagenet", channels=3)
        self.backbone = _backbone(backbone, weights)
        finest, fine, middle, deep = WIDTHS[backbone]
        self.edge = EdgeAttention(finest, score_norm)
        self.rfb2 = ReceptiveFieldBlock(fine, channel)
        self.rfb3 = ReceptiveFieldBlock(middle, channel)
        self.rfb4 = ReceptiveFieldBlock(deep, channel)
        self.decoder = PartialDecoder(channel)
        # 256 for 2048 channels, as in the paper's code
        self.reverse4 = ReverseAttention(deep, deep // 8, kernel=5, depth=3, score_kernel=1, score_norm=score_norm)
        self.reverse3 = ReverseAttention(middle, _REVERSE_INNER, score_norm=score_norm)
        self.reverse2 = ReverseAttention(fine, _REVERSE_INNER, score_norm=score_norm)
        self.reverse1 = ReverseAttention(finest, _REVERSE_INNER, score_norm=score_norm) if fourth else None
        self.kinds: nn.Module | None = None
        if classes > 1:
            joined = ConvNorm(_REVERSE_INNER + channel + 1, _REVERSE_INNER, 3)
            self.kinds = nn.Sequential(joined, nn.ReLU(), nn.Conv2d(_REVERSE_INNER, classes + 1, 1))

    def forward(self, image: Tensor) -> SegmentationOutput:
        """Grey values (B, 1, H, W) float32 in [0, 255] to logits at H x W.

        Raises:
            ValueError: H or W is not a multiple of 32, or below 64.
        """
        size = image.shape[2:]
        if image.ndim != 4 or any(side % MULTIPLE or side < MIN_SIDE for side in size):
            raise ValueError(
                f"Inf-Net got images of shape {tuple(image.shape)}; it needs (B, 1, H, W) with both sides multiples of"
                f" {MULTIPLE} and at least {MIN_SIDE} pixels, such as 256, 352 or 448: resize or pad them"
            )
        x1, x2, x3, x4 = self.backbone.pyramid(self.input(image))
        guidance, edge = self.edge(x1)
        fine = self.rfb2(x2)
        s5 = self.decoder(self.rfb4(x4), self.rfb3(x3), fine)
        s4, _ = self.reverse4(x4, s5, guidance)
        s3, _ = self.reverse3(x3, s4, guidance)
        s2, features = self.reverse2(x2, s3, guidance)
        kinds = None
        if self.kinds is not None:
            kinds = resized(self.kinds(torch.cat([features, fine, torch.sigmoid(s2).detach()], dim=1)), size)
        maps = [s5, s4, s3, s2]
        if self.reverse1 is not None:
            s1, features = self.reverse1(x1, s2, guidance)
            maps.append(s1)
        return SegmentationOutput(tuple(resized(s, size) for s in maps), resized(edge, size), kinds, features)


def _backbone(name: str, weights: str | Path | None) -> backbones.Backbone | res2net.Res2Net50:
    if name == "res2net50":
        network = res2net.Res2Net50()
        if weights == "imagenet":
            raise ConfigError(
                "weights: imagenet cannot be fetched for res2net50: give the path of a state dict of timm's res2net50d"
                " or of res2net50_v1b_26w_4s, or null to train from scratch"
            )
        if weights is not None:
            res2net.load_weights(network, Path(weights))
        return network
    plain = backbones.Backbone(name)
    if weights is not None:
        backbones.load_weights(plain, str(weights))
    return plain
