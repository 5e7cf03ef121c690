"""The sections of params.yaml. Every default says where it comes from: paper (its number), its code, or ours."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from chestflow.data.manifest import POSITIVE, Label, Modality

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]
Count = Annotated[int, Field(ge=1)]
#: How many runs an ensemble may join (slots in dvc.yaml).
MEMBER_SLOTS = 6


class Section(BaseModel):
    """A part of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Data(Section):
    sets: list[Name] = Field(min_length=1)  # folders under data/, read by the adapters of the same names
    patients_per_set: int | None = Field(None, ge=10)  # ours: a stratified subset for quick trials; null takes all
    id_key: str = "chestflow"  # key of the hashes that stand for patients and images; set your own for private data


class Validation(Section):
    min_images_per_class: int = Field(10, ge=1)  # ours
    confounding_warn: Probability = 0.9  # ours: balanced accuracy of guessing the class from the format


class Cohort(Section):
    sets: list[Name] = Field(min_length=1)
    modality: Modality
    labels: list[Label] | None = None  # which labels take part; null takes all
    external: list[Name] = []  # sets that are tested on and never trained on
    official_test: bool = True  # the sets' own test images are the test in every fold; false deals them into the folds
    views: list[str] | None = None  # X-ray views that take part, unknown ones always; null takes all, laterals too
    annotated: list[Name] = []  # sets of which only images with a lesion mask or boxes take part
    #: set -> label -> images, null for all there are; a set that is named here gives nothing else
    take: dict[Name, dict[Label, Count | None]] = {}
    #: steps of label -> images that leave the folds for the test role, as whole groups; equal first steps nest
    moved_to_test: list[dict[Label, Count]] = []

    @model_validator(mode="after")
    def _names_its_own(self) -> Self:
        for what, named in (("take", self.take), ("annotated", self.annotated)):
            for source in named:
                if source not in self.sets + self.external:
                    raise ValueError(f"{what} names the set {source}, which is in neither sets nor external")
        for source, labels in self.take.items():
            if not labels:
                raise ValueError(f"take.{source} names no label: leave the set out of sets instead")
        asked = {label for labels in self.take.values() for label in labels}
        asked |= {label for step in self.moved_to_test for label in step}
        outside = sorted(asked - set(self.labels or asked))
        if outside:
            raise ValueError(f"take or moved_to_test names the label {outside[0]}, which is not in labels")
        return self


class Split(Section):
    k: int = Field(5, ge=2)  # paper 001, 004
    tune_share: Share = 0.2  # ours: of what is not test
    hamming: int = Field(4, ge=0, le=64)  # ours: perceptual hashes this close are compared
    correlation: Probability = 0.99  # ours: and are the same picture at this correlation of 32x32 thumbnails


class CxrLungs(Section):
    sets: list[Name] = []  # sets whose lung masks train the segmenter; empty leaves X-rays without lung masks
    size: int = Field(128, ge=64, multiple_of=16)  # ours
    epochs: int = Field(12, ge=1)  # ours
    width: int = Field(16, ge=4)  # ours: channels of the first U-Net level
    lr: float = Field(2e-3, gt=0)  # ours
    batch_size: int = Field(16, ge=1)  # ours


class Segment(Section):
    ct_lung_threshold_hu: float = -320.0  # ours: between air and soft tissue
    ct_closing_mm: float = Field(8.0, ge=0)  # ours
    ct_prefer_source: bool = False  # ours: take the source's lung masks on CT where it gives them
    cxr_lungs: CxrLungs = CxrLungs()


class Clahe(Section):
    clip: float = Field(4.0, gt=0)  # paper 001's code
    tiles: int = Field(4, ge=1)  # paper 001's code


class Recipe(Section):
    modality: Modality
    size: list[Annotated[int, Field(ge=8)]] = Field(min_length=2, max_length=3)  # (H, W), or (D, H, W) for volumes
    clahe: Clahe | None = None  # images only
    keep: Literal["all", "lungs", "outside_lungs", "outside_box", "border"] = "all"  # ours: the rest becomes black
    keep_aspect: bool = False  # ours: papers 001 and 002 resize without; true pads to a square first
    spacing_mm: list[float] | None = None  # (z, y, x) for volumes; paper 004: 1.25, 0.7168, 0.7168
    max_downscale: float = Field(0.5, gt=0, le=1)  # paper 004: one common factor, about 1/2

    @model_validator(mode="after")
    def _fits_modality(self) -> Self:
        want = 3 if self.modality == "ct_volume" else 2
        if len(self.size) != want:
            raise ValueError(f"size needs {want} numbers for {self.modality}, has {len(self.size)}")
        if self.modality == "ct_volume" and self.clahe is not None:
            raise ValueError("clahe is for images; volumes stay in HU")
        if self.modality == "ct_volume" and (self.spacing_mm is None or len(self.spacing_mm) != 3):
            raise ValueError("a ct_volume recipe needs spacing_mm: [z, y, x]")
        return self


class Task(Section):
    cohort: Name
    classes: dict[str, list[Label]]  # class -> labels, in index order; covid19 is the positive class and stands last

    @model_validator(mode="after")
    def _positive_last(self) -> Self:
        if len(self.classes) < 2:
            raise ValueError("a task needs at least two classes")
        if list(self.classes)[-1] != POSITIVE:
            raise ValueError(f"the last class must be {POSITIVE}, the positive one")
        used = [label for labels in self.classes.values() for label in labels]
        if len(used) != len(set(used)):
            raise ValueError("a label stands in two classes")
        return self


class Run(Section):
    method: Name
    task: Name
    recipe: Name
    config: dict[str, Any] = {}
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
    amp: Literal["auto", "off", "bf16"] = "auto"  # auto: bfloat16 on GPUs, float32 on CPUs
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


class Evaluate(Section):
    bootstrap: int = Field(1000, ge=50)  # ours: patient-clustered resamples
    prevalences: list[Share] = [0.01, 0.05, 0.2]  # ours: where PPV and NPV are stated
    ratio_cuts: list[Share] = [0.005, 0.03]  # paper 004, Table III
    min_group: int = Field(20, ge=2)  # ours: smaller subgroups are shown but never gate a promotion
    attention_threshold: Probability = 0.4  # paper 004: beta; where a lesion's outline is known
    box_threshold: Probability = 0.4  # ours: where a source draws boxes; paper 001's code has 0.75 and 0.85


class Register(Section):
    members: Literal["all", "best"] = "all"  # ours: the folds' networks averaged, or the best on its tune role


class Gates(Section):
    """Lower and upper bounds that the evidence must meet."""

    auroc_lo: Probability = 0.80  # ours: lower end of the 95% interval
    sensitivity_lo: Probability = 0.60  # ours
    ece_max: Probability = 0.15  # ours
    worst_subgroup_auroc: Probability = 0.65  # ours: over subgroups of at least evaluate.min_group
    source_auroc_max: Probability = 0.95  # ours: of predicting the source from the picture's border, once measured


class Promote(Section):
    staging: Gates = Gates()
    production: Gates = Gates(auroc_lo=0.90, sensitivity_lo=0.80, ece_max=0.08, worst_subgroup_auroc=0.80)
    research_use: bool = False  # true: never serves patients, so licences do not block
