"""Attention from multiple knowledge sources on chest CT slices (paper 003).

"An Attention Mechanism using Multiple Knowledge Sources for COVID-19 Detection from CT Images": a global branch, a
heat-map branch on the region where the global one's last map is strongest (eqs. 1 and 2), an infected branch on the
segmented infection left and right, and a fusion of their pools, each by binary cross entropy (eq. 3), one after the
other with the earlier ones frozen (algorithm 2). No code was published.

The global branch is the network's own, or another run's network (``uses: {global: RUN}``), frozen from the start: so
tau can be tuned between the two, and any network that gives a vector and a map can take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from chestflow.errors import ConfigError
from chestflow.methods.registry import InputSpec, Method, at_least_one, code, ours, paper
from chestflow.nn.backbones import CHANNELS, MIN_SIDE, Backbone
from chestflow.nn.knowledge_branches import Branch, UsedBranch
from chestflow.nn.knowledge_input import input_layer
from chestflow.nn.knowledge_network import BRANCHES, MultiKnowledge, RegionSettings
from chestflow.training.knowledge_loss import loss_of
from chestflow.training.knowledge_start import begin
from chestflow.training.optimisers import OPTIMISERS, SCHEDULES, check_rates, optimiser_of, schedule_of
from chestflow.training.phases import Augmentation, Phase
from chestflow.training.region_augmentation import Strength, random_slice
from chestflow.training.samplers import uniform
from chestflow.training.used_network import rebuilt

STRATEGIES = ("G-H-I-F", "GHI-F", "GHIF")


@dataclass(frozen=True)
class MultiKnowledgeConfig:
    """Settings of paper 003; each field says where its default comes from. Its slices have 224 pixels a side."""

    backbone: str = paper("densenet169", "also resnet50", choices=tuple(CHANNELS))
    channels: int = code(3, "grey is repeated", choices=(1, 3))
    normalise: str = code(
        "selftrans",
        "its statistics; with weights of another source, theirs",
        choices=("selftrans", "imagenet", "unit", "zscore"),
    )
    weights: str | None = ours(
        None, "`imagenet` downloads, or a state dict's path; the paper starts from one or the other"
    )
    init_from_previous: bool = paper(True, "a finished branch's weights initialise the next")
    global_branch: str = paper("own", "run: another run's network, named under uses", choices=("own", "run"))
    answers: str = paper("fusion", "which branch's row of the tables this is", choices=BRANCHES)
    strategy: str = paper("G-H-I-F", "appendix; GHIF all at once, GHI-F all but the fusion", choices=STRATEGIES)
    tau: float | None = paper(0.75, "eq. 2; null takes the tuned one")
    heat_source: str = ours(
        "relu_sum",
        "eq. 1 sums; a last map may be negative; cam: weighted by the global branch's classifier",
        paper="sum",
        choices=("relu_sum", "sum", "abs_max", "cam"),
    )
    heat_norm: str = ours(
        "min_max", "eq. 1 divides by max alone: H may never reach tau", paper="paper", choices=("min_max", "paper")
    )
    connectivity: int = ours(8, "as AG-CNN's code", choices=(4, 8))
    region: str = ours("crop", "the paper maps the region to the slice; as AG-CNN", choices=("crop", "mask"))
    heat_margin: float = ours(0.0, "share of the slice's side; as AG-CNN")
    margin: float = ours(0.05, "around the infection, share of the slice's side")
    min_side: int = ours(16, "pixels of a box at least")
    sides: str = ours("midline", "parts left from right; lungs: by the nearer lung", choices=("midline", "lungs"))
    share_sides: bool = ours(True, "one backbone for left and right, since slices are few", paper=False)
    heat_concat: bool = ours(False, "the heat-map branch also classifies the global pool; eq. 5 can be read so")
    num_outputs: int = ours(1, "a sigmoid; 2: one for each class, as eq. 3", paper=2, choices=(1, 2))
    augment: str = ours(
        "crops", "of frozen stages; view: the slice before its boxes are found", choices=("crops", "view", "none")
    )
    crop_scale: tuple[float, float] = code((0.5, 1.0), "area that a random crop keeps")
    flip: float = code(0.5, "probability of a left-right mirror")
    jitter: float = code(0.2, "share of brightness and contrast either way")
    optimiser: str = paper("sgd", "settings", choices=OPTIMISERS)
    lr: float = paper(1e-2, "settings")
    momentum: float = paper(0.9, "settings; adam leaves it unused")
    weight_decay: float = paper(1e-4, "settings")
    schedule: str = paper("step", "a tenth every schedule_step epochs", choices=SCHEDULES)
    schedule_step: int = paper(30, "settings")
    batch_size: int = paper(32, "settings")
    accumulate: int = ours(1, "micro-batches a step; batch norm sees a micro-batch")
    epochs: int = paper(50, "of each branch")
    fusion_epochs: int | None = ours(None, "of the fusion where it trains alone; null: as epochs")
    patience: int | None = ours(None, "the best epoch counts in any case")
    monitor: str = ours("accuracy", "the paper's best on validation names no metric")
    clip_norm: float | None = ours(None, "none stated")

    def __post_init__(self) -> None:
        check_rates(self)
        at_least_one(self, "min_side")
        if self.fusion_epochs is not None and self.fusion_epochs < 1:
            raise ValueError(f"fusion_epochs is {self.fusion_epochs}; it must be at least 1, or null")
        if self.tau is not None and not 0 <= self.tau <= 1:
            raise ValueError(f"tau is {self.tau}; heat maps lie in [0, 1]")
        if not 0 <= self.heat_margin < 0.5 or not 0 <= self.margin < 0.5:
            raise ValueError(f"heat_margin is {self.heat_margin}, margin {self.margin}; they are shares below 0.5")
        _ = self.strength
        if self.global_branch == "run" and self.strategy != "G-H-I-F":
            raise ValueError(f"strategy {self.strategy} trains the global branch with the others: it must be own")
        if self.global_branch == "run" and self.answers == "global":
            raise ValueError("another run's network answers by itself: nothing would be trained with answers: global")

    @property
    def strength(self) -> Strength:
        """Of the augmentation."""
        return Strength(scale=self.crop_scale, flip=self.flip, jitter=self.jitter)

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that the network has."""
        if self.strategy == "GHIF" or self.answers == "fusion":
            return BRANCHES
        if self.strategy == "GHI-F":
            return BRANCHES[:3]
        return tuple(name for name in BRANCHES[:3] if name in ("global", self.answers))


def build(config: MultiKnowledgeConfig, spec: InputSpec) -> MultiKnowledge:
    """The network for slices of ``spec``.

    Raises:
        ConfigError: other pictures, too small ones, classes that do not fit ``num_outputs``, no tau, or a global branch
            that is missing, unwanted, or gives no map.
    """
    side = MIN_SIDE[config.backbone]
    if spec.modality not in METHOD.modalities:
        raise ConfigError(f"multi_knowledge reads CT slices, not {spec.modality}: use a ct_slice recipe")
    if len(spec.shape) != 2 or min(spec.shape) < side:
        raise ConfigError(f"multi_knowledge needs slices of at least {side} a side; the recipe makes {spec.shape}")
    if len(spec.classes) != 2:
        raise ConfigError(f"multi_knowledge tells two classes apart; the task has {', '.join(spec.classes)}")
    if config.global_branch == "own" and "global" in spec.uses:
        raise ConfigError("uses.global names a run, but config.global_branch is own: set it to run")
    if config.global_branch == "run" and "global" not in spec.uses:
        raise ConfigError("config.global_branch is run, but none is named: give uses: {global: RUN}, or set it to own")
    heat = "heat" in config.branches
    tau = spec.uses.get("tau") if config.tau is None else config.tau
    if heat and tau is None:
        raise ConfigError("config.tau is null and none was tuned: give a number, or uses: {global: RUN} to tune it")

    def own() -> Backbone:
        return Backbone(config.backbone, config.channels)

    width = CHANNELS[config.backbone]
    branches: dict[str, nn.Module] = {}
    if config.global_branch == "run":
        used, pooled, mapped = rebuilt(spec.uses["global"], spec, cam=heat and config.heat_source == "cam")
        if heat and not mapped:
            raise ConfigError("uses.global gives no map of features, so no heat map: set answers to infected")
        if config.init_from_previous and not same_backbone(used, config):
            raise ConfigError(
                f"init_from_previous: the used network has no {config.backbone} of {config.channels} channels as its"
                " backbone: choose its backbone, or set init_from_previous to false"
            )
        branches["global"] = used
    else:
        pooled = width
        branches["global"] = Branch(pooled, config.num_outputs, own())
    joined = {"heat": width + config.heat_concat * pooled, "infected": pooled + 2 * width}
    for name, inputs in joined.items():
        if name in config.branches:
            right = own() if name == "infected" and not config.share_sides else None
            branches[name] = Branch(inputs, config.num_outputs, own(), right)
    if "fusion" in config.branches:
        branches["fusion"] = Branch(pooled + 3 * width, config.num_outputs)
    how = RegionSettings(
        None if tau is None else float(tau),
        config.heat_source,  # type: ignore[arg-type]
        config.heat_norm,  # type: ignore[arg-type]
        config.connectivity,
        config.region,
        config.heat_margin,
        config.margin,
        config.min_side,
        config.sides,
    )
    layer = input_layer(config.normalise, config.channels)
    return MultiKnowledge(layer, branches, how, config.answers, config.heat_concat)


def same_backbone(used: UsedBranch, config: MultiKnowledgeConfig) -> bool:
    """Whether another run's network has a backbone whose weights this network's branches can start from."""
    theirs = getattr(used.network, "backbone", None)
    return isinstance(theirs, Backbone) and (theirs.name, theirs.in_channels) == (config.backbone, config.channels)


def phases(config: MultiKnowledgeConfig) -> list[Phase]:
    """As the strategy says; of G-H-I-F those that the answer needs."""
    view = random_slice(config.strength) if config.augment != "none" else None
    later = view if config.augment == "view" else None

    def phase(name: str, heads: Sequence[str], answers: str, augment: Augmentation | None, frozen: bool) -> Phase:
        rates = config
        if name == "fusion" and config.fusion_epochs is not None:
            rates = replace(config, epochs=config.fusion_epochs)
        return Phase(
            name=name,
            loss=loss_of(
                heads,
                remembers=frozen and config.augment != "view",
                strength=config.strength if frozen and config.augment == "crops" else None,
            ),
            optimiser=optimiser_of(rates),
            sampler=uniform,
            epochs=rates.epochs,
            batch_size=config.batch_size,
            schedule=schedule_of(rates),
            trains=tuple("global_branch" if head == "global" else head for head in heads),
            augment=augment,
            prepare=begin(
                answers,
                [head for head in heads if head != "fusion"],
                follow=frozen and config.init_from_previous,
                weights=config.weights,
            ),
            monitor=config.monitor,
            patience=config.patience,
            accumulate=config.accumulate,
            clip_norm=config.clip_norm,
        )

    names = config.branches
    if config.strategy == "GHIF":
        return [phase("joint", names, config.answers, view, False)]
    if config.strategy == "GHI-F":
        fused = config.answers == "fusion"
        first = phase("branches", BRANCHES[:3], "mean" if fused else config.answers, view, False)
        return [first, phase("fusion", ("fusion",), "fusion", later, True)] if fused else [first]
    found = [phase("global", ("global",), "global", view, False)] if config.global_branch == "own" else []
    return found + [phase(name, (name,), name, later, True) for name in names if name != "global"]


METHOD = Method(
    name="multi_knowledge",
    citation="Attention from multiple knowledge sources for COVID-19 on CT (paper 003), eqs. 1 to 5, algorithm 2",
    modalities=("ct_slice",),
    config=MultiKnowledgeConfig,
    build=build,
    phases=phases,
)
