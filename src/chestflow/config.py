"""Schema of params.yaml: one section per stage, unknown keys and impossible values refused with one clear line.

The methods' own settings live in their configs (see :mod:`chestflow.methods.registry`); ``runs.<name>.config`` holds
them completed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from chestflow.config_base import Name, Section
from chestflow.config_data import Clahe, Cohort, Data, Recipe, Split, Task, Validation
from chestflow.config_evidence import Evaluate, Gates, Promote, Register
from chestflow.config_runs import (
    MEMBER_SLOTS,
    DualEnsemble,
    Engine,
    Ensemble,
    MeanEnsemble,
    Pretraining,
    Run,
    Tau,
    Tune,
)
from chestflow.config_segmentation import CxrLungs, Infection, Segment
from chestflow.data.manifest import LABELS, POSITIVE
from chestflow.errors import ConfigError


class Params(Section):
    """params.yaml as a whole."""

    profile: str
    seed: int = 1
    folds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)  # the folds that are trained
    data: Data
    validate_: Validation = Field(Validation(), alias="validate")
    cohorts: dict[Name, Cohort] = Field(min_length=1)
    split: Split = Split()
    infection: Infection = Infection()
    segment: Segment = Segment()
    recipes: dict[Name, Recipe] = Field(min_length=1)
    tasks: dict[Name, Task] = Field(min_length=1)
    runs: dict[Name, Run] = Field(min_length=1)
    ensembles: dict[Name, Ensemble] = Field(default_factory=dict)
    engine: Engine = Engine()
    pretraining: dict[Name, Pretraining] = Field(default_factory=dict)
    tau: Tau = Tau()
    tune: Tune = Tune()
    evaluate: Evaluate = Evaluate()
    register_: Register = Field(Register(), alias="register")
    promote: Promote = Promote()

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
        slices, volumes = self.infection.ct_slice, self.infection.ct_volume
        for source in [*slices.sets, *slices.pseudo.sets, *volumes.sets]:
            known("infection", source, self.data.sets)
        if slices.pseudo.sets and not slices.sets:
            raise ValueError("infection.ct_slice.pseudo.sets needs infection.ct_slice.sets, whose masks come first")
        for name, task in self.tasks.items():
            known(f"tasks.{name}.cohort", task.cohort, self.cohorts)
        for name, pretraining in self.pretraining.items():
            known(f"pretraining.{name}.cohort", pretraining.cohort, self.cohorts)
            known(f"pretraining.{name}.recipe", pretraining.recipe, self.recipes)
            ours = self.cohorts[pretraining.cohort].modality
            if self.recipes[pretraining.recipe].modality != ours:
                raise ValueError(f"pretraining.{name}: recipe {pretraining.recipe} is not for {ours}, its cohort's")
        for name, run in self.runs.items():
            known(f"runs.{name}.task", run.task, self.tasks)
            known(f"runs.{name}.recipe", run.recipe, self.recipes)
            ours = self.cohorts[self.tasks[run.task].cohort].modality
            if self.recipes[run.recipe].modality != ours:
                raise ValueError(f"runs.{name}: recipe {run.recipe} is not for {ours}, the modality of task {run.task}")
            self._takes_over(name, run)
        for name, ensemble in self.ensembles.items():
            if isinstance(ensemble, DualEnsemble):
                known(f"ensembles.{name}.uniform", ensemble.uniform, self.runs)
                known(f"ensembles.{name}.balanced", ensemble.balanced, self.runs)
            for part in ensemble.parts:
                known(f"ensembles.{name}.members", part, self.runs)
            if name in self.runs:
                raise ValueError(f"{name} names both a run and an ensemble")
            if len({self.runs[part].task for part in ensemble.parts}) > 1:
                raise ValueError(f"ensembles.{name} joins runs of different tasks")
        if max(self.folds) >= self.split.k:
            raise ValueError(f"folds asks for fold {max(self.folds)}, but split.k is {self.split.k}; they count from 0")
        return self

    def _takes_over(self, name: str, run: Run) -> None:
        """Refuse what a run could not use, or could not use without having seen its test images."""
        for role, used in run.uses.items():
            place, table = f"runs.{name}.uses.{role}", self.runs if role == "global" else self.pretraining
            if used not in table:
                raise ValueError(f"{place} names {used!r}, which is not among {', '.join(table) or 'none'}")
        if "global" in run.uses:
            other = self.runs[run.uses["global"]]
            if "global" in other.uses:
                raise ValueError(f"runs.{name}.uses.global is {run.uses['global']}, which uses another run itself")
            if (other.task, other.recipe) != (run.task, run.recipe):
                raise ValueError(f"runs.{name}.uses.global is {run.uses['global']}, a run of another task or recipe")
        if "weights" in run.uses:
            cohort, theirs = self.tasks[run.task].cohort, self.pretraining[run.uses["weights"]].cohort
            if cohort != theirs:
                raise ValueError(f"runs.{name} is of cohort {cohort}, its weights of {theirs}: they may know its tests")
            if run.config.get("weights") is not None:
                raise ValueError(f"runs.{name} has both config.weights and uses.weights: name one")

    def packed(self) -> set[str]:
        """The recipes that a run or a pretraining reads."""
        return {run.recipe for run in self.runs.values()} | {one.recipe for one in self.pretraining.values()}

    @property
    def modalities(self) -> list[str]:
        """Those that are segmented: the cohorts', and those that a segmenter of infection is asked for."""
        asked = {str(name) for name, own in self.infection if own.sets}
        return sorted(asked | {cohort.modality for cohort in self.cohorts.values()})

    def modality_of(self, name: str) -> str:
        """What a run or an ensemble reads."""
        return self.recipes[self.runs[self.runs_of(name)[0]].recipe].modality

    def task_of(self, name: str) -> Task:
        """The task of a run or an ensemble."""
        return self.tasks[self.runs[self.runs_of(name)[0]].task]

    def runs_of(self, name: str) -> list[str]:
        """The runs that an ensemble joins, or the run itself."""
        return self.ensembles[name].parts if name in self.ensembles else [name]


def explain(error: ValidationError, file: str) -> ConfigError:
    """One line for the first problem, with the dotted place of the value."""
    first = error.errors()[0]
    where = list(first["loc"])
    if where[:1] == ["ensembles"] and len(where) > 2:
        del where[2]  # the form of the ensemble, which params.yaml does not state
    place = ".".join(str(part) for part in where) or "it"
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


__all__ = [
    "LABELS",
    "MEMBER_SLOTS",
    "POSITIVE",
    "Clahe",
    "Cohort",
    "CxrLungs",
    "Data",
    "DualEnsemble",
    "Engine",
    "Ensemble",
    "Evaluate",
    "Gates",
    "Infection",
    "MeanEnsemble",
    "Params",
    "Pretraining",
    "Promote",
    "Recipe",
    "Register",
    "Run",
    "Segment",
    "Split",
    "Task",
    "Tau",
    "Tune",
    "Validation",
    "load",
    "parse",
    "read_yaml",
]
