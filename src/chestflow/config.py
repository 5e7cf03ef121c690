"""Schema of params.yaml: one section per stage, unknown keys and impossible values refused with one clear line.

Every default says where it comes from: paper (its number), its code, or ours. The methods' own settings live in their
configs (see :mod:`chestflow.methods.registry`); ``runs.<name>.config`` holds them completed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chestflow.data.manifest import LABELS, POSITIVE, Label, Modality
from chestflow.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]


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


class Ensemble(Section):
    """P = w P_uniform + (1 - w) P_balanced with w by infection ratio (paper 004, section II-D)."""

    uniform: Name
    balanced: Name
    w_extreme: Probability = 0.35  # paper 004: ratio below the low cut or above the high cut
    w_middle: Probability = 0.96  # paper 004
    cut_low: Probability = 0.001  # paper 004
    cut_high: Probability = 0.030  # paper 004


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
    attention_threshold: Probability = 0.4  # paper 004: beta


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


class Params(Section):
    """params.yaml as a whole."""

    profile: str
    seed: int = 1
    folds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)  # the folds that are trained
    data: Data
    validate_: Validation = Field(Validation(), alias="validate")
    cohorts: dict[Name, Cohort] = Field(min_length=1)
    split: Split = Split()
    segment: Segment = Segment()
    recipes: dict[Name, Recipe] = Field(min_length=1)
    tasks: dict[Name, Task] = Field(min_length=1)
    runs: dict[Name, Run] = Field(min_length=1)
    ensembles: dict[Name, Ensemble] = {}
    engine: Engine = Engine()
    tune: Tune = Tune()
    evaluate: Evaluate = Evaluate()
    register_: Register = Field(Register(), alias="register")
    promote: Promote = Promote()
    dag: dict[str, Any] = {}  # written by `chestflow config`: the tables that dvc.yaml iterates over

    @model_validator(mode="after")
    def _references(self) -> Self:
        def known(what: str, name: str, table: dict[str, Any] | list[str]) -> None:
            if name not in table:
                raise ValueError(f"{what} names {name!r}, which is not among {', '.join(table)}")

        for name, cohort in self.cohorts.items():
            for source in cohort.sets + cohort.external:
                known(f"cohorts.{name}", source, self.data.sets)
            if set(cohort.sets) & set(cohort.external):
                raise ValueError(f"cohorts.{name} has a set both trained on and external")
        for source in self.segment.cxr_lungs.sets:
            known("segment.cxr_lungs.sets", source, self.data.sets)
        for name, task in self.tasks.items():
            known(f"tasks.{name}.cohort", task.cohort, self.cohorts)
        for name, run in self.runs.items():
            known(f"runs.{name}.task", run.task, self.tasks)
            known(f"runs.{name}.recipe", run.recipe, self.recipes)
            ours = self.cohorts[self.tasks[run.task].cohort].modality
            if self.recipes[run.recipe].modality != ours:
                raise ValueError(f"runs.{name}: recipe {run.recipe} is not for {ours}, the modality of task {run.task}")
        for name, ensemble in self.ensembles.items():
            known(f"ensembles.{name}.uniform", ensemble.uniform, self.runs)
            known(f"ensembles.{name}.balanced", ensemble.balanced, self.runs)
            if name in self.runs:
                raise ValueError(f"{name} names both a run and an ensemble")
            if self.runs[ensemble.uniform].task != self.runs[ensemble.balanced].task:
                raise ValueError(f"ensembles.{name} joins runs of different tasks")
        if max(self.folds) >= self.split.k:
            raise ValueError(f"folds asks for fold {max(self.folds)}, but split.k is {self.split.k}; they count from 0")
        return self

    def task_of(self, name: str) -> Task:
        """The task of a run or an ensemble."""
        run = self.ensembles[name].uniform if name in self.ensembles else name
        return self.tasks[self.runs[run].task]


def explain(error: ValidationError, file: str) -> ConfigError:
    """One line for the first problem, with the dotted place of the value."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "it"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{file}: {place} is unknown; check the spelling{more}")
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
    return ConfigError(f"{file}: {place}: {message}{given}{more}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; a missing, damaged or empty file raises :class:`ConfigError` naming it."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: write it with `chestflow config phantom`") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping")
    return values


def parse(values: dict[str, Any], file: str = "params.yaml") -> Params:
    """Check plain values; raises :class:`ConfigError` with one line."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise explain(error, file) from None


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml."""
    return parse(read_yaml(path), str(path))


__all__ = ["LABELS", "POSITIVE", "Params", "load", "parse", "read_yaml"]
