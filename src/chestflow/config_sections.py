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
#: Paper 003's threshold of the heat map.
PAPER_TAU = 0.75


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
    ct_convex_wall: bool = True  # ours: dense lesions at the chest wall count as lung
    ct_prefer_source: bool = False  # ours: take the source's lung masks on CT where it gives them
    infection_prefer_source: bool = True  # ours: false takes the trained network's masks on CT, for all images alike
    cxr_lungs: CxrLungs = CxrLungs()


class PseudoLabels(Section):
    """Algorithm 1 of paper 003: unlabelled slices, a chunk a round, join the training with their predicted masks."""

    sets: list[Name] = []  # sets whose slices without masks take part; empty leaves the loop out
    chunk: int = Field(100, ge=1)  # paper 003; Inf-Net's code: 5
    threshold: Share = 0.5  # ours
    soft_targets: bool = False  # true: probabilities instead of masks, as the code; never scaled by their range
    include_test_in_pseudo: bool = False  # paper 003: true, transductive; its classifiers are tested on those slices
    epochs: int = Field(9, ge=1)  # Inf-Net's code, per round
    lr: float = Field(3e-4, gt=0)  # Inf-Net's code
    batch_size: int = Field(16, ge=1)  # Inf-Net's code
    final: Literal["paper", "pretrain_finetune"] = "paper"  # the code's: anew on pseudo labels, then on doctors' labels


class InfectionSlices(Section):
    """Inf-Net on axial slices."""

    sets: list[Name] = []  # sets whose infection masks train the segmenter; empty trains none
    backbone: Literal["res2net50", "resnet18"] = "res2net50"  # paper 003; resnet18 is ours, for small machines
    weights: str | None = None  # path of a state dict of the backbone; null starts from scratch
    channel: int = Field(32, ge=4)  # Inf-Net's code
    size: int = Field(352, ge=64, multiple_of=32)  # Inf-Net's code
    scales: list[Annotated[float, Field(gt=0, le=2)]] = Field([0.75, 1.0, 1.25], min_length=1)  # Inf-Net's code
    epochs: int = Field(100, ge=1)  # Inf-Net's code, whose loop runs 99
    lr: float = Field(1e-4, gt=0)  # Inf-Net's code
    batch_size: int = Field(24, ge=1)  # Inf-Net's code
    clip_value: float | None = Field(0.5, gt=0)  # Inf-Net's code: of each gradient
    #: step: /10 after each 50 epochs, as stated; compounding: as the code does, by that power of 10 again each epoch
    schedule: Literal["constant", "step", "compounding", "cosine"] = "step"
    weighting: Literal["applied", "cancelled"] = "applied"  # paper 003; in the code the weights cancel
    threshold: Share = 0.5  # ours
    flips: bool = True  # ours
    normal_as_empty: bool = False  # ours: images of label normal train with empty masks
    pseudo: PseudoLabels = PseudoLabels()


class InfectionVolumes(Section):
    """Inf-Net slice by slice inside the lungs' box, or a 3D U-Net on patches."""

    sets: list[Name] = []  # sets whose infection masks train the segmenter; empty trains none
    network: Literal["slices", "unet3d"] = "slices"  # ours
    window: tuple[float, float] = (-1350.0, 150.0)  # paper 004: HU, to grey 0 to 255
    slices_per_volume: int = Field(8, ge=1)  # ours: that train; half of them from where the infection is
    slices: InfectionSlices = InfectionSlices()  # its sets and pseudo labels stay empty
    spacing_mm: tuple[float, float, float] | None = (3.0, 1.5, 1.5)  # ours: (z, y, x) of the U-Net; null: the file's
    patch: tuple[int, int, int] = (32, 96, 96)  # ours
    patches_per_volume: int = Field(4, ge=1)  # ours: an epoch's; half of them around infection
    width: int = Field(16, ge=4)  # ours: channels of the U-Net's first level
    epochs: int = Field(40, ge=1)  # ours
    lr: float = Field(1e-3, gt=0)  # ours
    batch_size: int = Field(4, ge=1)  # ours
    threshold: Share = 0.5  # ours
    normal_as_empty: bool = False  # ours: volumes of label normal train with empty masks

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.slices.sets or self.slices.pseudo.sets:
            raise ValueError("slices.sets and slices.pseudo.sets are for pictures: name volumes' sets in sets")
        if not self.window[0] < self.window[1]:
            raise ValueError(f"window is {list(self.window)}; the first must be below the second")
        if any(side < 16 or side % 8 for side in self.patch):
            raise ValueError(f"patch is {list(self.patch)}; each side must be a multiple of 8, and 16 or more")
        if self.spacing_mm is not None and min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm is {list(self.spacing_mm)}; each must be above 0")
        return self


class Infection(Section):
    """Segmenters of infection, by modality; without sets there is none, and only source masks count."""

    ct_slice: InfectionSlices = InfectionSlices()
    ct_volume: InfectionVolumes = InfectionVolumes()


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
