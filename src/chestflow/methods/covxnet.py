"""CovXNet: dilated depthwise networks for several image sizes, their answers joined by a stacked classifier.

Mahmud, Rahman and Fattah, "CovXNet: a multi-dilation convolutional neural network for automatic COVID-19 and other
pneumonia detection from chest X-ray images with transferable multi-receptive feature optimization", Computers in
Biology and Medicine 122 (2020).

Provenance: the networks are read from the authors' code (github.com/awsaf49/CovXNet, Architecture/ and
covxnet/network/model.py, where the depths 5, 5, 5 and 2 stand); the stacking is approximated, since the code does not
hold it: a linear layer on the branches' log-probabilities that begins as their mean and is trained with the branches
frozen. The paper's first training on other pneumonias and its transfer layers are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.errors import ConfigError
from chestflow.methods.registry import InputSpec, Method, at_least_one, code, ours, paper
from chestflow.nn.dilated import Branch
from chestflow.nn.input import CxrInput
from chestflow.nn.output import Output
from chestflow.training.augmentation import random_affine
from chestflow.training.phases import Batch, LossFunction, Phase
from chestflow.training.samplers import uniform
from chestflow.training.supervised import cross_entropy, require_pictures

#: image side -> highest dilation and residual units a level, as published
PUBLISHED = {256: (6, 2), 128: (5, 5), 64: (4, 5), 32: (3, 5)}


@dataclass(frozen=True)
class CovXNetConfig:
    """Settings of the paper and its code; each field says where its default comes from."""

    scales: tuple[int, ...] = paper((256, 128, 64, 32), "image sides, one network each")
    depth: int | None = code(None, "residual units a level; null: 2 for 256 pixels, else 5")
    width: int = code(32, "of the first level; doubles at each next one")
    hidden: int = code(64, "width of the layer before each network's classifier")
    norm_momentum: float = code(0.01, "batch norm; 0.1 for runs of fewer than some 500 steps")
    channels: int = ours(1, "the code takes any input shape", choices=(1, 3))
    normalise: str = ours("unit", "not in the code", choices=("unit", "imagenet", "zscore"))
    lr: float = code(1e-3, "Adam with its library's default")
    batch_size: int = ours(16, "not in the code")
    accumulate: int = ours(1, "micro-batches a step, for small GPUs")
    epochs: int = ours(100, "of the branches; not in the code")
    stacking_epochs: int = ours(10, "of the joining layer; 0 leaves it the branches' mean")
    patience: int | None = ours(None, "none in the code")
    monitor: str = ours("auroc", "none in the code")
    clip_norm: float | None = ours(None, "none in the code")
    augment: bool = ours(False, "none in the code; true: mirror, 10 degrees, 5% shift, 10% size and brightness")

    def __post_init__(self) -> None:
        at_least_one(self, "width", "hidden")
        if not self.scales or len(set(self.scales)) < len(self.scales) or not set(self.scales) <= set(PUBLISHED):
            raise ValueError(f"scales are {self.scales}; choose among {', '.join(map(str, PUBLISHED))}, each once")
        if not 0 < self.norm_momentum <= 1:
            raise ValueError(f"norm_momentum is {self.norm_momentum}; it must be above 0 and at most 1")
        if self.lr <= 0 or self.stacking_epochs < 0 or (self.depth is not None and self.depth < 1):
            raise ValueError("lr must be above 0, stacking_epochs 0 or more, depth at least 1 or null")


class Classifier(nn.Module):
    """One image size's network with its own answer."""

    def __init__(self, config: CovXNetConfig, scale: int, classes: int) -> None:
        super().__init__()
        most, depth = PUBLISHED[scale]
        self.scale = scale
        self.branch = Branch(config.channels, most, config.depth or depth, config.width, config.norm_momentum)
        self.hidden = nn.Linear(self.branch.out_channels, config.hidden)
        self.answer = nn.Linear(config.hidden, classes)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) to logits (B, classes), the last map, and the hidden vector (B, hidden)."""
        sides = (self.scale, self.scale)
        if image.shape[2:] != sides:
            image = F.interpolate(image, sides, mode="bilinear", align_corners=False, antialias=True)
        features = self.branch(image)
        hidden = torch.relu(self.hidden(features.mean((2, 3))))
        return self.answer(hidden), features, hidden


@dataclass
class StackedOutput(Output):
    """Also ``branches``: (B, S, C), the logits of each scale's network."""

    branches: Tensor | None = None


class CovXNet(nn.Module):
    """The networks of all scales and the layer that joins their answers.

    Children: ``input``, ``branches`` (a :class:`Classifier` for each scale, in the config's order), ``stack``.
    """

    def __init__(self, config: CovXNetConfig, classes: int) -> None:
        super().__init__()
        self.input = CxrInput(config.normalise, config.channels)  # type: ignore[arg-type]
        self.branches = nn.ModuleList(Classifier(config, scale, classes) for scale in config.scales)
        count = len(config.scales)
        self.stack = nn.Linear(count * classes, classes)
        with torch.no_grad():
            self.stack.weight.copy_(torch.eye(classes).repeat(1, count) / count)
            self.stack.bias.zero_()

    def answers(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 1 or 3, H, W) in [0, 255] to all branches' logits (B, S, C), the first branch's last map, and all hidden
        vectors (B, S * hidden)."""
        seen = self.input(image)
        logits, features, hidden = zip(*(branch(seen) for branch in self.branches), strict=True)
        return torch.stack(logits, dim=1), features[0], torch.cat(hidden, dim=1)

    def forward(self, image: Tensor, lung: Tensor | None = None) -> StackedOutput:
        """(B, 1 or 3, H, W) in [0, 255] to the joined logits; the lung mask is not used."""
        logits, features, hidden = self.answers(image)
        joined = self.stack(logits.float().log_softmax(2).flatten(1))
        return StackedOutput(joined, features=features, embedding=hidden, branches=logits)


def branch_loss(network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """Sum of the branches' cross entropies: they share no parameter, so each trains as it would alone."""
    logits = network(batch.image, batch.lung).branches.float()  # (B, S, C)
    each = [F.cross_entropy(logits[:, s], batch.target) for s in range(logits.shape[1])]
    return {"loss": torch.stack(each).sum()}


def build(config: CovXNetConfig, spec: InputSpec) -> CovXNet:
    """The network, untrained.

    Raises:
        ConfigError: a scale is larger than the images, they are no X-rays, or fewer than two classes.
    """
    require_pictures("covxnet", spec, 1)
    if max(config.scales) > min(spec.shape):
        raise ConfigError(
            f"covxnet's largest scale is {max(config.scales)} and the recipe makes {spec.shape}: drop the scales that"
            " would enlarge the images, or use a larger recipe"
        )
    return CovXNet(config, len(spec.classes))


def phases(config: CovXNetConfig) -> list[Phase]:
    """The branches, then the layer that joins them."""

    def optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=config.lr)

    def phase(name: str, loss: LossFunction, trains: tuple[str, ...], epochs: int) -> Phase:
        return Phase(
            name=name,
            loss=loss,
            optimiser=optimiser,
            sampler=uniform,
            epochs=epochs,
            batch_size=config.batch_size,
            trains=trains,
            augment=random_affine() if config.augment else None,
            monitor=config.monitor,
            patience=config.patience,
            accumulate=config.accumulate,
            clip_norm=config.clip_norm,
        )

    first = [phase("branches", branch_loss, ("branches",), config.epochs)]
    if config.stacking_epochs == 0 or len(config.scales) == 1:
        return first
    return [*first, phase("stack", cross_entropy, ("stack",), config.stacking_epochs)]


METHOD = Method(
    name="covxnet",
    citation="CovXNet (Mahmud et al. 2020), dilated depthwise units at several image sizes",
    provenance="networks read from the authors' code; stacking approximated by a linear layer, transfer left out",
    modalities=("cxr", "ct_slice"),
    config=CovXNetConfig,
    build=build,
    phases=phases,
)
