"""The sections of params.yaml on runs, ensembles, training and tuning; each default says where it comes from."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from chestflow.config_base import CanBeOff, Name, Probability, Range, Section, Share

#: How many runs an ensemble may join (slots in dvc.yaml).
MEMBER_SLOTS = 6
#: Paper 003's threshold of the heat map.
PAPER_TAU = 0.75


class Run(Section):
    method: Name
    task: Name
    recipe: Name
    config: dict[str, Any] = {}
    #: what it takes over: global, a run whose network is its global branch; weights, a pretraining of its backbones
    uses: dict[Literal["global", "weights"], Name] = {}
    seed: int = 0  # added to the profile's seed


class DualEnsemble(Section):
    """P = w P_uniform + (1 - w) P_balanced with w by infection ratio (paper 004, section II-D)."""

    kind: ClassVar[str] = "dual"
    uniform: Name
    balanced: Name
    w_extreme: Probability = 0.35  # paper 004: ratio below the low cut or above the high cut
    w_middle: Probability = 0.96  # paper 004
    cut_low: Probability = 0.001  # paper 004
    cut_high: Probability = 0.030  # paper 004

    @property
    def parts(self) -> list[str]:
        """The runs that it joins; where one must stand for it, the first does."""
        return [self.uniform, self.balanced]


class MeanEnsemble(Section):
    """The mean of several runs' probabilities of one task, whatever their methods and recipes."""

    kind: ClassVar[str] = "mean"
    members: list[Name] = Field(min_length=2, max_length=MEMBER_SLOTS)
    weights: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None  # ours: null weighs all alike
    tuned: bool = False  # ours: search weights on the tune role; they count only where they are better beyond doubt

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.members)) < len(self.members):
            raise ValueError("members names a run twice; give it more weight instead")
        if self.weights is not None and len(self.weights) != len(self.members):
            raise ValueError(f"weights has {len(self.weights)} numbers for {len(self.members)} members")
        if self.weights is not None and not sum(self.weights) > 0:
            raise ValueError("weights are all 0; at least one member must count")
        return self

    @property
    def parts(self) -> list[str]:
        """The runs that it joins; where one must stand for it, the first does."""
        return list(self.members)

    @property
    def shares(self) -> dict[str, float]:
        """The stated weight of each member, summing to 1."""
        weights = self.weights or [1.0] * len(self.members)
        return {name: weight / sum(weights) for name, weight in zip(self.members, weights, strict=True)}


def _kind(values: Any) -> str | None:
    """Which form of ensemble these values are of; None where they are of neither, or of both."""
    if isinstance(values, DualEnsemble | MeanEnsemble):
        return values.kind
    if not isinstance(values, dict):
        return None
    dual, mean = bool({"uniform", "balanced"} & values.keys()), "members" in values
    return "dual" if dual and not mean else "mean" if mean and not dual else None


Ensemble = Annotated[
    Annotated[DualEnsemble, Tag("dual")] | Annotated[MeanEnsemble, Tag("mean")],
    Discriminator(
        _kind,
        custom_error_type="ensemble_form",
        custom_error_message="give either members, runs to average, or uniform and balanced, two runs to blend",
    ),
]


class Engine(Section):
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    #: auto: bfloat16 on GPUs, float32 on CPUs; native: on CPUs with units for bfloat16 too, for pictures
    amp: Annotated[Literal["auto", "off", "bf16", "native"], CanBeOff] = "auto"
    threads: int = Field(2, ge=1)  # pinned: float sums, and so the weights, change with the number of CPU threads
    checkpoint_every: int | None = Field(None, ge=1)  # steps; null checkpoints at the end of each epoch


class Tune(Section):
    trials: int = Field(60, ge=1)  # ours
    threshold: Range = (0.02, 0.98)  # ours
    temperature: Range = (0.05, 20.0)  # ours
    w: Range = (0.0, 1.0)  # paper 004
    cut_low: Range = (0.0002, 0.005)  # ours, around paper 004's 0.001
    cut_high: Range = (0.01, 0.08)  # ours, around paper 004's 0.030
    criterion: Literal["youden", "macro_f1", "accuracy"] = "youden"  # ours
    bootstrap: int = Field(200, ge=20)  # ours
    storage: str | None = None  # an Optuna storage URL for many workers; null journals under .checkpoints/

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("threshold", "temperature", "w", "cut_low", "cut_high"):
            low, high = getattr(self, name)
            if not low < high:
                raise ValueError(f"{name} is [{low}, {high}]; the first must be below the second")
        if self.cut_low[1] > self.cut_high[0]:
            raise ValueError("cut_low's range must end at or below where cut_high's begins")
        return self


class Tau(Section):
    """The search for the heat map's threshold (paper 003), between the global and the heat-map branch."""

    range: Range = (0.3, 0.95)  # ours, around paper 003's 0.75
    trials: int = Field(12, ge=2)  # ours
    epochs: int = Field(5, ge=1)  # ours: of the heat-map branch in each trial
    criterion: Literal["auroc", "accuracy", "macro_f1"] = "auroc"  # ours: accuracy ties on small tune roles
    pruning: bool = True  # ours: a trial ends when it is worse than the median of those before it at the same epoch
    prune_from: int = Field(4, ge=1)  # ours: trials that run to their end before any is given up
    prune_after: int = Field(1, ge=0)  # ours: epochs before a trial may be given up
    bootstrap: int = Field(200, ge=20)  # ours

    @model_validator(mode="after")
    def _holds_the_papers(self) -> Self:
        low, high = self.range
        if not 0 <= low < high <= 1:
            raise ValueError(f"range is [{low}, {high}]; it must rise within [0, 1]")
        if not low <= PAPER_TAU <= high:
            raise ValueError(f"range is [{low}, {high}]; it must hold the paper's {PAPER_TAU}, which is always tried")
        return self


class Pretraining(Section):
    """MoCo v2 on a cohort's training pictures without their labels (Self-Trans); its weights start backbones."""

    cohort: Name
    recipe: Name
    backbone: str = "densenet169"  # paper 003; any that chestflow.nn.backbones knows
    channels: Literal[1, 3] = 3  # paper 003: three equal ones; as the runs that start from these weights
    normalise: Literal["selftrans", "imagenet", "unit", "zscore"] = "selftrans"  # Self-Trans; as the runs' again
    weights: str | None = None  # where it starts: null at random, `imagenet` (Self-Trans), or a state dict's path
    epochs: int = Field(200, ge=1)  # MoCo v2
    batch: int = Field(128, ge=2)  # Self-Trans
    lr: float = Field(0.015, gt=0)  # MoCo v2: 0.03 at batch 256
    weight_decay: float = Field(1e-4, ge=0)  # MoCo v2
    queue: int = Field(512, ge=1)  # ours: about a small cohort's pictures; MoCo v2 has 65536 for a million
    skip_own: bool = True  # ours: a small set's queue holds old keys of the query's own picture: no negatives
    momentum: float = Field(0.999, ge=0, lt=1)  # MoCo: of the key encoder
    temperature: float = Field(0.2, gt=0)  # MoCo v2
    key_groups: int = Field(4, ge=1)  # Self-Trans ran on 4 GPUs: parts of a batch whose keys are normalised apart
    smallest_crop: Share = 0.2  # MoCo v2: share of the picture's area that a view keeps at least
    seed: int = 0  # added to the profile's seed
