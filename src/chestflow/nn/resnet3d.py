"""3D ResNet of basic blocks, whose last stage may keep its resolution (paper 004, section II-B)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

#: depth -> blocks of each stage; 10 is one block a stage
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def _conv3(inputs: int, outputs: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class ZeroPadShortcut(nn.Module):
    """Shortcut A: subsample and pad the new channels with zeros; no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = outputs - inputs, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, D / s, H / s, W / s)."""
        s = self.stride
        return F.pad(x[:, :, ::s, ::s, ::s], (0, 0, 0, 0, 0, 0, 0, self.extra))


class BasicBlock3d(nn.Module):
    """Two 3x3x3 convolutions with batch norm and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, shortcut: Literal["A", "B"] = "B") -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3(inputs, outputs, stride), nn.BatchNorm3d(outputs)
        self.conv2, self.bn2 = _conv3(outputs, outputs, 1), nn.BatchNorm3d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if (stride != 1 or inputs != outputs) and shortcut == "A":
            self.shortcut = ZeroPadShortcut(inputs, outputs, stride)
        elif stride != 1 or inputs != outputs:
            projection = nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm3d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, ceil(D / s), ...)."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class ResNet3d(nn.Module):
    """3D ResNet up to its last map.

    With the paper's stride 1 in the last stage the total stride is 16 in each dimension, so that small lesions keep a
    cell of their own; a 1 x 138 x 256 x 256 volume gives 512 x 9 x 16 x 16.

    Args:
        depth: 10, 18 or 34.
        width: channels of the first stage; each next one doubles them.
        last_stride: of the last stage's first block; 1 in the paper, 2 in the plain ResNet.
        shortcut: B projects by 1x1x1 convolutions, A pads with zeros.
        stem_stride_z: stride of the first convolution along z; released video networks use 1, volumes 2.
        checkpointing: recompute the stem and each block in the backward pass instead of keeping their insides.
    """

    def __init__(
        self,
        depth: int = 34,
        width: int = 64,
        last_stride: int = 1,
        shortcut: Literal["A", "B"] = "B",
        stem_stride_z: int = 2,
        in_channels: int = 1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth is {depth}; choose one of {', '.join(map(str, BLOCKS))}")
        if last_stride not in (1, 2) or stem_stride_z not in (1, 2) or shortcut not in ("A", "B"):
            raise ValueError("last_stride and stem_stride_z are 1 or 2, shortcut is A or B")
        self.checkpointing = checkpointing
        self.conv1 = nn.Conv3d(in_channels, width, 7, stride=(stem_stride_z, 2, 2), padding=3, bias=False)
        self.bn1, self.relu = nn.BatchNorm3d(width), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        channels = width
        stages = []
        for index, (blocks, stride) in enumerate(zip(BLOCKS[depth], (1, 2, 2, last_stride), strict=True)):
            outputs = width * 2**index
            first = BasicBlock3d(channels, outputs, stride, shortcut)
            rest = [BasicBlock3d(outputs, outputs) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(first, *rest))
            channels = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.out_channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[nn.Sequential]:
        """The four stages in order."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def stem(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to (B, width, ceil(D / 4), ceil(H / 4), ceil(W / 4))."""
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to (B, 8 * width, ceil(D / 16), ceil(H / 16), ceil(W / 16)) with last stride 1."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            x = self.stem(x)
            for stage in self.stages():
                x = stage(x)
            return x
        x = checkpoint(self.stem, x, use_reentrant=False, context_fn=partial(_contexts, self.bn1))
        for stage in self.stages():
            for block in stage:
                x = checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block))
        return x


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _running_statistics_kept(block)


@contextmanager
def _running_statistics_kept(block: nn.Module) -> Iterator[None]:
    """Keep batch norm from counting a batch a second time when its block is recomputed in the backward pass.

    The recomputation works on copies of the buffers: it must save as many tensors as the forward pass did, so they
    cannot simply be turned off, and writing the old values back would modify tensors that autograd has saved.
    Synchronised batch norm, which several GPUs put in place of BatchNorm3d, is a kind of its own.
    """
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: value.clone() for name, value in norm._buffers.items() if value is not None})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
