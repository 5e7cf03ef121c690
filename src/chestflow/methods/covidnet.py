"""COVIDNet: ResNet, spatial pyramid, NetVLAD and context gating on chest X-rays (paper 002).

"COVIDNet: Automatic COVID-19 Detection with Spatial Pyramid Pooling, NetVLAD and Context Gating", section III:
pyramid pooling with the pyramid match weights (III-B), NetVLAD (III-C and D, eqs. 1 to 4), context gating (III-E,
eq. 5), two fully connected layers and cross entropy. No code was published. The paper does not say how the pyramid
feeds NetVLAD: here its bins are the descriptors.

Settings: A pools globally, B takes the pyramid as one vector, C adds NetVLAD to the pyramid, D context gating to C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chestflow.errors import ConfigError, TrainingError
from chestflow.methods.registry import InputSpec, Method, at_least_one, ours, paper
from chestflow.nn.backbones import CHANNELS, MIN_SIDE, Backbone, load_weights
from chestflow.nn.context_gating import ContextGating
from chestflow.nn.input import CxrInput
from chestflow.nn.netvlad import NetVLAD, fit_centres
from chestflow.nn.output import Output
from chestflow.nn.pooling import SpatialPyramid
from chestflow.training.optimisers import OPTIMISERS
from chestflow.training.phases import Batch, Phase
from chestflow.training.supervised import FineTuned, classify, require_pictures


@dataclass(frozen=True)
class CovidNetConfig(FineTuned):
    """Settings of paper 002; each field says where its default comes from."""

    setting: str = paper("D", "section IV", choices=("A", "B", "C", "D"))
    backbone: str = paper("resnet18", "Tables II to V; also resnet50", choices=tuple(CHANNELS))
    weights: str | None = ours(None, "`imagenet` downloads; also a state dict's path", paper="imagenet")
    spp_levels: tuple[int, ...] = ours((1, 2, 4), "levels are not stated")
    spp_pool: str = ours("max", "not stated; as the pyramid's own paper", choices=("max", "avg"))
    spp_weighting: bool = paper(True, "III-B, finer bins weigh more")
    clusters: int = ours(16, "K is not stated; 21 descriptors cannot fill NetVLAD's usual 64")
    vlad_init: str = ours("kmeans", "of training descriptors", choices=("kmeans", "random"))
    vlad_alpha: float | None = ours(None, "null: nearest / second assignment of about 100; with random centres 100")
    vlad_descriptors: int = ours(20_000, "for k-means at most")
    normalise_descriptors: bool = ours(True, "as NetVLAD; not stated")
    cg_on: str = ours("reduced", "W on all K x D values takes gigabytes", paper="vlad", choices=("reduced", "vlad"))
    cg_norm: bool = paper(False, "eq. 5 has a bias; LOUPE's gate has batch norm instead")
    cg_limit: int = ours(8192, "widest gate that is built; W takes 4 bytes times the square")
    hidden: int = ours(512, "width between the two fully connected layers, not stated")
    optimiser: str = paper("sgd", "IV-C", choices=OPTIMISERS)
    lr: float = paper(1e-4, "IV-C")
    momentum: float = paper(0.9, "IV-C")
    weight_decay: float = ours(0.0, "none stated")
    batch_size: int = paper(48, "IV-C")
    epochs: int = paper(50, "IV-C")
    oversample: int = ours(5, "Table I counts 420 COVID-19 images, the text 84: 5 times")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "clusters", "hidden", "vlad_descriptors")
        if self.vlad_descriptors < self.clusters:
            raise ValueError(
                f"clusters is {self.clusters} and vlad_descriptors {self.vlad_descriptors}: k-means needs a descriptor"
                " for each cluster at least"
            )
        if self.vlad_alpha is not None and self.vlad_alpha <= 0:
            raise ValueError(f"vlad_alpha is {self.vlad_alpha}; it must be above 0, or null for the rule")


class CovidNet(nn.Module):
    """The network of settings A to D.

    Children: ``input``, ``backbone``; from B on ``pyramid``; from C on ``vlad``; then ``reduction`` (first fully
    connected layer), in D ``gate``, and ``classifier``.
    """

    def __init__(self, config: CovidNetConfig, classes: int = 2) -> None:
        super().__init__()
        self.setting, self.cg_on = config.setting, config.cg_on
        self.input = CxrInput(config.normalise, config.channels)  # type: ignore[arg-type]
        self.backbone = Backbone(config.backbone, config.channels)
        width = self.backbone.out_channels
        if self.setting != "A":
            self.pyramid = SpatialPyramid(config.spp_levels, config.spp_pool, config.spp_weighting)  # type: ignore[arg-type]
        if self.setting == "B":
            width *= self.pyramid.bins
        if self.setting in "CD":
            alpha = config.vlad_alpha or 100.0
            self.vlad = NetVLAD(config.clusters, width, config.normalise_descriptors, alpha)
            width *= config.clusters
        self.reduction = nn.Linear(width, config.hidden)
        if self.setting == "D":
            gated = config.hidden if self.cg_on == "reduced" else width
            if gated > config.cg_limit:
                raise ConfigError(
                    f"a gate on {gated} values needs {gated**2 * 4 / 2**30:.1f} GiB for W alone: set cg_on to reduced,"
                    f" lower clusters, or raise cg_limit (now {config.cg_limit})"
                )
            self.gate = ContextGating(gated, config.cg_norm)
        self.classifier = nn.Linear(config.hidden, classes)

    def pooled(self, features: Tensor) -> Tensor:
        """(B, D, h, w) to the vector before the fully connected layers."""
        if self.setting == "A":
            return features.flatten(2).mean(2)
        if self.setting == "B":
            return self.pyramid.vector(features)
        return self.vlad(self.pyramid(features), self.pyramid.weights)

    def forward(self, image: Tensor, lung: Tensor | None = None) -> Output:
        """(B, 1 or 3, H, W) in [0, 255], not below the backbone's smallest side, to logits; the mask is not used.

        Raises:
            ValueError: a smaller image.
        """
        features = self.backbone(self.input(image))
        vector = self.pooled(features)
        if self.setting == "D" and self.cg_on == "vlad":
            vector = self.gate(vector)
        hidden = self.reduction(vector)
        # the gate takes the place of the ReLU between the two layers
        hidden = self.gate(hidden) if self.setting == "D" and self.cg_on == "reduced" else torch.relu(hidden)
        return Output(self.classifier(hidden), features=features, embedding=hidden)


def descriptors(network: CovidNet, batches: Iterator[Batch], at_most: int) -> Tensor:
    """Pyramid descriptors (M, D) of training images as NetVLAD's assignment will see them in the first steps.

    The backbone runs in train mode, because statistics of an untrained batch norm say nothing yet; its buffers are put
    back afterwards.
    """
    before = {name: value.clone() for name, value in network.backbone.named_buffers()}
    mode = network.backbone.training
    network.backbone.train()
    found: list[Tensor] = []
    with torch.no_grad():
        for batch in batches:
            if len(batch.image) < 2:
                continue  # batch norm cannot do without a second image where the map is a single cell
            features = network.backbone(network.input(batch.image))
            found.append(network.vlad.descriptors(network.pyramid(features)).flatten(0, 1).cpu())
            if sum(map(len, found)) >= at_most:
                break
        for name, value in network.backbone.named_buffers():
            value.copy_(before[name])
    network.backbone.train(mode)
    return torch.cat(found)[:at_most] if found else torch.empty(0, network.backbone.out_channels)


def prepare(config: CovidNetConfig, seed: int = 0) -> Callable[[nn.Module, Iterator[Batch]], None]:
    """What happens once before the first step: pretrained weights, then k-means centres for NetVLAD."""

    def run(network: nn.Module, batches: Iterator[Batch]) -> None:
        assert isinstance(network, CovidNet)
        if config.weights is not None:
            load_weights(network.backbone, config.weights)
        if config.setting in "CD" and config.vlad_init == "kmeans":
            found = descriptors(network, batches, config.vlad_descriptors)
            try:
                centres, alpha = fit_centres(found, config.clusters, seed)
            except ValueError as error:
                raise TrainingError(f"NetVLAD cannot be initialised: {error}") from None
            network.vlad.tie(centres, config.vlad_alpha or alpha)

    return run


def build(config: CovidNetConfig, spec: InputSpec) -> CovidNet:
    """The network, untrained: pretrained weights come in the phase's preparation, so that rebuilding needs no file.

    Raises:
        ConfigError: the images are too small or are no X-rays, fewer than two classes, or too wide a gate.
    """
    require_pictures("covidnet", spec, MIN_SIDE[config.backbone])
    try:
        return CovidNet(config, len(spec.classes))
    except ValueError as error:
        raise ConfigError(f"covidnet: {error}") from None


def phases(config: CovidNetConfig) -> list[Phase]:
    """One phase of cross entropy."""
    head = {"A": (), "B": (), "C": ("vlad",), "D": ("vlad", "gate")}[config.setting] + ("reduction", "classifier")
    return [classify(config, trains=head if config.freeze_backbone else (), prepare=prepare(config))]


METHOD = Method(
    name="covidnet",
    citation="COVIDNet with spatial pyramid pooling, NetVLAD and context gating (paper 002), eqs. 1 to 5",
    modalities=("cxr", "ct_slice"),
    config=CovidNetConfig,
    build=build,
    phases=phases,
)
