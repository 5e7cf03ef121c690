"""Res2Net-50 v1b 26w4s: a ResNet-50 whose 3x3 convolutions become a cascade over four groups of channels.

Gao et al., "Res2Net: A New Multi-scale Backbone Architecture" (TPAMI 2021). The form "v1b", which Inf-Net uses, has a
stem of three 3x3 convolutions and shortcuts that average before they project; timm calls it ``res2net50d``. Parameters
are named as in timm and in the authors' files, so that either's state dict loads.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from chestflow.errors import TrainingError
from chestflow.nn.backbones import read_state

SCALE = 4  #: groups of channels in a block (4s)
BASE_WIDTH = 26  #: channels of a group in the first stage (26w), doubled in each next stage
EXPANSION = 4
BLOCKS = (3, 4, 6, 3)


class Bottle2neck(nn.Module):
    """1x1 convolution, four groups of which three pass a 3x3 convolution each, 1x1 convolution; with a shortcut.

    In a stage's later blocks each group's convolution also sees the result of the group before it, so that one block
    holds several receptive fields; a stage's first block keeps the groups apart and pools the fourth.
    """

    def __init__(self, inputs: int, planes: int, stride: int = 1, first: bool = False) -> None:
        super().__init__()
        self.width = planes * BASE_WIDTH // 64
        self.first = first
        self.conv1 = nn.Conv2d(inputs, self.width * SCALE, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.width * SCALE)
        self.convs = nn.ModuleList(
            nn.Conv2d(self.width, self.width, 3, stride, padding=1, bias=False) for _ in range(SCALE - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(self.width) for _ in range(SCALE - 1))
        self.pool = nn.AvgPool2d(3, stride, padding=1) if first else nn.Identity()
        self.conv3 = nn.Conv2d(self.width * SCALE, planes * EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * EXPANSION)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if first:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
                nn.Conv2d(inputs, planes * EXPANSION, 1, bias=False),
                nn.BatchNorm2d(planes * EXPANSION),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, 4 planes, ceil(H / stride), ceil(W / stride)), non-negative."""
        groups = self.relu(self.bn1(self.conv1(x))).split(self.width, dim=1)
        done: list[Tensor] = []
        for index, (conv, norm) in enumerate(zip(self.convs, self.bns, strict=True)):
            joined = groups[index] if self.first or not done else done[-1] + groups[index]
            done.append(self.relu(norm(conv(joined))))
        y = self.bn3(self.conv3(torch.cat([*done, self.pool(groups[-1])], dim=1)))
        return self.relu(y + self.downsample(x))


class Res2Net50(nn.Module):
    """Res2Net-50 v1b 26w4s up to its last map: 23,669,352 parameters, total stride 32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        inputs = 64
        for index, blocks in enumerate(BLOCKS):
            planes = 64 * 2**index
            layers = [Bottle2neck(inputs, planes, stride=1 if index == 0 else 2, first=True)]
            inputs = planes * EXPANSION
            layers += [Bottle2neck(inputs, planes) for _ in range(blocks - 1)]
            setattr(self, f"layer{index + 1}", nn.Sequential(*layers))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to maps of 256, 512, 1024 and 2048 channels at strides 4, 8, 16 and 32, finest first."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for index in range(len(BLOCKS)):
            x = self.get_submodule(f"layer{index + 1}")(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to the last map (B, 2048, H / 32, W / 32)."""
        return self.pyramid(x)[-1]


def load_weights(network: Res2Net50, path: Path) -> None:
    """Fill the network from a state dict of timm's ``res2net50d`` or the authors' ``res2net50_v1b_26w_4s``.

    The classifier's two tensors are left out.

    Raises:
        TrainingError: the file is missing, damaged, or of another network.
    """
    state = {key.removeprefix("module."): value for key, value in read_state(path).items()}
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    own = network.state_dict()
    # states saved before batch norm counted its batches lack the counts, which nothing here reads
    state = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")} | state
    wrong = sorted(k for k in own if k not in state or own[k].shape != state[k].shape) + sorted(set(state) - set(own))
    if wrong:
        raise TrainingError(
            f"weights {path} do not fit res2net50: {len(wrong)} tensors missing, unknown or of another shape, first"
            f" {wrong[0]}; give a state dict of timm's res2net50d (Res2Net-50 v1b 26w4s)"
        )
    network.load_state_dict(state)
