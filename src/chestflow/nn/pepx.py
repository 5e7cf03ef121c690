"""PEPX: COVID-Net's projection, expansion, projection, extension block, and the stages that paper 000 makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from chestflow.nn.attention_gate import AttentionGate

Mode = Literal["repo", "covidnet"]
Norm = Literal["none", "batch"]


def he_init(module: nn.Module) -> None:
    """He's normal initialisation of every convolution and linear layer, biases zero.

    The dense sums of these networks grow the scale of what passes through; without it their first losses are useless.
    PEPX blocks keep their gain.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, PEPX):
            layer.weaken()


def pointwise(inputs: int, outputs: int, norm: Norm = "none") -> nn.Sequential:
    """A 1x1 convolution with bias, batch norm if asked for, and ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 1)]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers, nn.ReLU())


@dataclass(frozen=True)
class PepxStyle:
    """What all PEPX blocks of a network have in common.

    Attributes:
        mode: widths of the four: ``repo`` has the output's width throughout (paper 000's code), ``covidnet`` half the
            input's, three quarters of it, half of it, and the output's (COVID-Net: project, expand, project, extend).
        dw_act: a ReLU after the depthwise convolution; paper 000's code has none there.
        norm: batch norm after each convolution; neither has it.
        gain: of a block's last convolution when training begins, see :meth:`PEPX.weaken`.

    Raises:
        ValueError: an unknown mode, or a gain of 0 or less.
    """

    mode: Mode = "repo"
    dw_act: bool = False
    norm: Norm = "none"
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.gain <= 0:
            raise ValueError(f"gain is {self.gain}; a block that begins at 0 gets no gradient through its ReLU")
        if self.mode not in ("repo", "covidnet"):
            raise ValueError(f"mode is {self.mode!r}; choose repo or covidnet")


PLAIN = PepxStyle()


class PEPX(nn.Module):
    """Two 1x1 convolutions, a depthwise 3x3, two 1x1 convolutions; (B, inputs, H, W) to (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, style: PepxStyle = PLAIN) -> None:
        super().__init__()
        self.gain = style.gain
        mode, norm = style.mode, style.norm
        project, expand = (outputs, outputs) if mode == "repo" else (max(1, inputs // 2), max(1, 3 * inputs // 4))
        self.project = pointwise(inputs, project, norm)
        self.expand = pointwise(project, expand, norm)
        depthwise: list[nn.Module] = [nn.Conv2d(expand, expand, 3, padding=1, groups=expand)]
        if norm == "batch":
            depthwise.append(nn.BatchNorm2d(expand))
        self.depthwise = nn.Sequential(*depthwise, *([nn.ReLU()] if style.dw_act else []))
        self.reproject = pointwise(expand, project, norm)
        self.extend = pointwise(project, outputs, norm)
        self.weaken()

    def weaken(self) -> None:
        """Give the block's last layer its first strength: the batch norm's weights, or new convolution weights scaled.

        Blocks that begin at full strength drown the shortcuts in whose sums they take part.
        """
        last = self.extend[-2]  # the ReLU comes after it
        with torch.no_grad():
            if isinstance(last, nn.BatchNorm2d):
                last.weight.fill_(self.gain)
            elif isinstance(last, nn.Conv2d):
                last.weight.mul_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W), non-negative."""
        extended: Tensor = self.extend(self.reproject(self.depthwise(self.expand(self.project(x)))))
        return extended


class PepxStage(nn.Module):
    """One stage of paper 000's network: a shortcut by 1x1 convolution, PEPX blocks that each see the sum of those
    before them, and a gate over the last.

    Args:
        inputs: channels of both of its inputs.
        width: channels of what it makes.
        depth: PEPX blocks, at least 2 where there is a gate.
        gate: over the last block, with the mean of the blocks before it as the gating signal; None has none.
        dense_last: whether the last block sees the sum as the others do. In the code's last stage it sees the block
            before it alone: the sum is made and left unused.
        style: of the blocks; its ``norm`` is the shortcut's too.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        depth: int,
        *,
        style: PepxStyle = PLAIN,
        gate: AttentionGate | None = None,
        dense_last: bool = True,
    ) -> None:
        super().__init__()
        if depth < 1 or (gate is not None and depth < 2):
            raise ValueError(f"a stage of {depth} blocks has none before the last, which a gate needs")
        self.shortcut = pointwise(inputs, width, style.norm)
        blocks = [PEPX(inputs if i == 0 else width, width, style) for i in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.gate = gate
        self.dense_last = dense_last

    def maps(self, main: Tensor, shortcut: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The shortcut's map and each block's, all (B, width, H, W)."""
        across = self.shortcut(shortcut)
        made = [self.blocks[0](main)]
        total = across + made[0]
        for block in self.blocks[1:]:
            alone = not self.dense_last and block is self.blocks[-1]
            made.append(block(made[-1] if alone else total))
            total = total + made[-1]
        return across, made

    def forward(self, main: Tensor, shortcut: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs, H, W) twice to the next stage's main and shortcut inputs, (B, width, H // 2, W // 2)."""
        across, made = self.maps(main, shortcut)
        last = made[-1]
        if self.gate is not None:
            last = self.gate(last, torch.stack(made[:-1]).mean(0))
        pool = nn.functional.max_pool2d
        return pool(across + last, 2), pool(across + torch.stack(made).sum(0), 2)
