"""The encoder of paper 000: COVID-Net's stages with attention gates where long-range connections meet."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from chestflow.nn.attention_gate import AttentionGate, Reading
from chestflow.nn.pepx import PLAIN, PepxStage, PepxStyle

FinalGate = Literal["repo", "residual"]


class PepxEncoder(nn.Module):
    """Image to a non-negative vector of ``encoded`` values.

    The raw image is max-pooled before the first 7x7 convolution, as the code does. Each stage gets two inputs, the main
    one and the shortcut; see :class:`~chestflow.nn.pepx.PepxStage`. After the last stage a gate weighs the shortcut's
    map (``repo``), or the sum of the shortcut's and all blocks' maps (``residual``), by the mean of the blocks: in
    ``repo`` the last stage's blocks reach the classifier through that one channel alone. Without gates the sum is taken
    as it is, as COVID-Net does.

    Args:
        size: (H, W) of the images; the first fully connected layer depends on it.
        in_channels: 1 or 3.
        widths, depths: of the stages.
        encoded: width of the vector h.
        gates: False leaves all gates out.
        inner: channels inside a gate as a share of its stage's width.
        reading: of the gates.
        final_gate: what the last gate weighs.
        dense_last: see :class:`~chestflow.nn.pepx.PepxStage`; for the last stage.
        style: of the PEPX blocks; its ``norm`` holds for every convolution.

    Raises:
        ValueError: an image side below 32, or settings that fit no network.
    """

    def __init__(
        self,
        size: tuple[int, int],
        in_channels: int = 3,
        widths: tuple[int, ...] = (56, 112, 216, 424),
        depths: tuple[int, ...] = (3, 4, 6, 3),
        encoded: int = 1024,
        *,
        gates: bool = True,
        inner: float = 1.0,
        reading: Reading = "multiply",
        final_gate: FinalGate = "repo",
        dense_last: bool = False,
        style: PepxStyle = PLAIN,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or not widths:
            raise ValueError(f"widths {widths} and depths {depths} name different numbers of stages")
        if final_gate not in ("repo", "residual"):
            raise ValueError(f"final_gate is {final_gate!r}; choose repo or residual")
        stride = 2 ** (len(widths) + 1)
        if min(size) < stride:
            raise ValueError(f"images are {size}; {len(widths)} stages need at least {stride} pixels a side")
        self.final_gate = final_gate

        def gate(width: int) -> AttentionGate | None:
            return AttentionGate(width, max(1, round(inner * width)), reading) if gates else None

        self.stem = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(in_channels, widths[0], 7, padding=3), nn.ReLU(), nn.MaxPool2d(2)
        )
        if style.norm == "batch":
            self.stem.insert(2, nn.BatchNorm2d(widths[0]))
        stages, inputs = [], widths[0]
        for place, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            last = place == len(widths) - 1
            stages.append(
                PepxStage(
                    inputs,
                    width,
                    depth,
                    style=style,
                    gate=None if last else gate(width),
                    dense_last=dense_last or not last,
                )
            )
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.gate = gate(widths[-1])
        cells = (size[0] // stride) * (size[1] // stride)
        self.flattened = widths[-1] * cells
        self.fc = nn.Linear(self.flattened, encoded)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, in_channels, H, W) to the last map (B, widths[-1], H / 32, W / 32) and h (B, encoded), both >= 0.

        Raises:
            ValueError: images of another size than the network was made for.
        """
        main = shortcut = self.stem(x)
        stages = list(self.stages)
        for stage in stages[:-1]:
            main, shortcut = stage(main, shortcut)
        across, made = stages[-1].maps(main, shortcut)  # type: ignore[operator]
        total = across + torch.stack(made).sum(0)
        if self.gate is None:
            features = total
        else:
            weighed = across if self.final_gate == "repo" else total
            features = self.gate(weighed, torch.stack(made).mean(0))
        if features[0].numel() != self.flattened:
            raise ValueError(
                f"the last map has {features[0].numel()} values, the network was made for {self.flattened}"
            )
        return features, torch.relu(self.fc(features.flatten(1)))
