"""COVID-Net as papers 000 and 001 compare with it: PEPX blocks with long-range connections, widths 256 to 2048.

The layout is that of ``covidnet.py`` in AC-CovidNet's repository (shivram1987/AC-CovidNet), a port of COVID-Net. At 224
pixels: a 7 x 7 convolution with stride 2 and pooling to 56, four stages of 3, 4, 6 and 3 PEPX blocks at 56, 28, 14 and
7 cells a side, then fully connected layers of 1024 and 256. All convolutions of a block have the stage's width, each
with a ReLU, the depthwise one too. No batch norm. No ImageNet weights of it are public, so it trains from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.methods.registry import InputSpec, Method, code, ours
from chestflow.nn.input import CxrInput
from chestflow.nn.output import Output
from chestflow.nn.pepx import PEPX, PepxStyle, he_init
from chestflow.training.phases import Phase
from chestflow.training.supervised import Supervised, classify, require_pictures

#: Halved five times.
STRIDE = 32
MIN_SIDE = 64


@dataclass(frozen=True)
class CovidNetConfig(Supervised):
    """Settings of COVID-Net."""

    channels: int = code(3, "covidnet.py", choices=(1, 3))
    normalise: str = code("unit", "divided by 255", choices=("unit", "imagenet", "zscore"))
    stem: int = code(64, "channels of the first convolution")
    widths: tuple[int, ...] = code((256, 512, 1024, 2048), "of the stages")
    depths: tuple[int, ...] = code((3, 4, 6, 3), "blocks of each stage")
    inner: tuple[bool, ...] = code((True, True, False, True), "whether a stage's blocks also see its shortcut")
    hidden: tuple[int, int] = code((1024, 256), "fully connected layers")
    block_gain: float = ours(0.1, "of a block's last layer when training begins, as ac_covidnet")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.widths) == len(self.depths) == len(self.inner) == 4:
            raise ValueError("COVID-Net has four stages: widths, depths and inner need four entries each")
        if min(*self.widths, *self.depths, *self.hidden, self.stem) < 1:
            raise ValueError("stem, widths, depths and hidden must be at least 1")
        _ = self.style

    @property
    def style(self) -> PepxStyle:
        """Of all blocks."""
        return PepxStyle(dw_act=True, gain=self.block_gain)


class Stage(nn.Module):
    """A 1 x 1 shortcut and densely summed PEPX blocks.

    Args:
        in_channels, width: before and after.
        depth: number of blocks.
        inner: whether the second and later blocks see the shortcut besides the blocks before them.
        pool: halve the maps of the shortcut and of the first block, as all stages but the first do.
        style: of the blocks.
    """

    def __init__(self, in_channels: int, width: int, depth: int, inner: bool, pool: bool, style: PepxStyle) -> None:
        super().__init__()
        self.inner, self.pool = inner, pool
        self.shortcut = nn.Conv2d(in_channels, width, 1)
        self.blocks = nn.ModuleList(PEPX(width if i else in_channels, width, style) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) to the sum of shortcut and blocks, (B, width, h, w) or half of it."""
        shortcut, total = torch.relu(self.shortcut(x)), self.blocks[0](x)
        if self.pool:
            shortcut, total = F.max_pool2d(shortcut, 2), F.max_pool2d(total, 2)
        for block in list(self.blocks)[1:]:
            total = total + block(total + shortcut if self.inner else total)
        return shortcut + total


class CovidNet(nn.Module):
    """The network for images of one size, because its first fully connected layer reads every cell.

    Children: ``input``, ``stem``, ``stages``, ``encoder`` (to 1024), ``hidden`` (to 256), ``head``.
    """

    def __init__(self, config: CovidNetConfig, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.size = size
        self.input = CxrInput(config.normalise, config.channels)  # type: ignore[arg-type]
        self.stem = nn.Conv2d(config.channels, config.stem, 7, stride=2, padding=3)
        planned = zip(pairwise((config.stem, *config.widths)), config.depths, config.inner, strict=True)
        self.stages = nn.Sequential(
            *(
                Stage(a, b, depth, inner, pool=i > 0, style=config.style)
                for i, ((a, b), depth, inner) in enumerate(planned)
            )
        )
        cells = ((size[0] + 1) // STRIDE) * ((size[1] + 1) // STRIDE)  # the convolution rounds up, the poolings down
        self.encoder = nn.Linear(config.widths[-1] * cells, config.hidden[0])
        self.hidden = nn.Linear(*config.hidden)
        he_init(self)
        self.head = nn.Linear(config.hidden[1], classes)

    def forward(self, image: Tensor, lung: Tensor | None = None) -> Output:
        """(B, 1 or 3, H, W) in [0, 255], of the size the network was built for, to logits.

        Raises:
            ValueError: an image of another size.
        """
        if tuple(image.shape[2:]) != self.size:
            raise ValueError(f"images are {tuple(image.shape[2:])}; this COVID-Net was built for {self.size}")
        x = F.max_pool2d(torch.relu(self.stem(self.input(image))), 2)
        features = self.stages(x)
        vector = torch.relu(self.encoder(features.flatten(1)))
        hidden = torch.relu(self.hidden(vector))
        return Output(self.head(hidden), features=features, embedding=vector)


def build(config: CovidNetConfig, spec: InputSpec) -> CovidNet:
    """The network for the recipe's image size.

    Raises:
        ConfigError: the images are too small or are volumes, or fewer than two classes.
    """
    require_pictures("covid_net", spec, MIN_SIDE)
    return CovidNet(config, (spec.shape[0], spec.shape[1]), len(spec.classes))


def phases(config: CovidNetConfig) -> list[Phase]:
    """One phase of cross entropy."""
    return [classify(config)]


METHOD = Method(
    name="covid_net",
    citation="COVID-Net (Wang et al. 2020), comparator of papers 000 (Table 2) and 001 (Table 3)",
    modalities=("cxr", "ct_slice"),
    config=CovidNetConfig,
    build=build,
    phases=phases,
    provenance="read from covidnet.py of AC-CovidNet's repository, a port of COVID-Net; the first convolution is padded"
    " evenly",
)
