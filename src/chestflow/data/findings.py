"""What validation has found: one sentence a finding, with its severity, and the rules that look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from chestflow.data.roles import members_of

if TYPE_CHECKING:
    from chestflow.config import Cohort, Task, Validation
    from chestflow.data.same_picture import Pairs
    from chestflow.data.sources.base import SourceInfo

#: critical stops the pipeline; a warning is carried to the report.
Severity = Literal["critical", "warning"]


@dataclass(frozen=True)
class Finding:
    """A rule that fired.

    Attributes:
        rule: its name.
        severity: what follows.
        where: the set, cohort or task.
        message: a plain sentence, free of paths and names.
        figures: the numbers in it.
    """

    rule: str
    severity: Severity
    where: str
    message: str
    figures: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Dataset:
    """What the rules look at.

    Attributes:
        manifest: all images, index 0 to N - 1.
        rejects: what ingest refused.
        cohorts: name -> sets, modality, labels, external sets.
        tasks: name -> cohort and classes.
        settings: section ``validate`` of params.yaml.
        infos: set -> what its authors state, for the sets that have an adapter.
        twins: row numbers of pairs that show the same picture under different labels.
        complete: whether the sets were ingested whole, and not as a subset of their patients.
    """

    manifest: pd.DataFrame
    rejects: pd.DataFrame
    cohorts: Mapping[str, Cohort]
    tasks: Mapping[str, Task]
    settings: Validation
    infos: Mapping[str, SourceInfo] = field(default_factory=dict)
    twins: Pairs | None = None
    complete: bool = True

    def sets(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Each set's rows."""
        for name, rows in self.manifest.groupby("source"):
            yield str(name), rows

    def members(self, cohort: str, external: bool = False) -> pd.DataFrame:
        """The labelled rows of a cohort, of the sets that it trains on, or of its external ones."""
        about = self.cohorts[cohort]
        rows = members_of(self.manifest, about, in_order=False)
        return rows[rows["source"].isin(about.external if external else about.sets) & rows["label"].notna()]

    def classes(self, task: str) -> pd.DataFrame:
        """The rows that a task takes from the sets its cohort trains on, with their class in a column ``class``."""
        class_of = {label: name for name, labels in self.tasks[task].classes.items() for label in labels}
        rows = self.members(self.tasks[task].cohort)
        rows = rows[rows["label"].isin(class_of)]
        return rows.assign(**{"class": rows["label"].map(class_of)})


#: where, sentence, figures
Found = tuple[str, str, dict[str, Any]]


@dataclass(frozen=True)
class Rule:
    """A named check: ``look`` yields what it found, nothing where all is well."""

    name: str
    severity: Severity
    about: str
    look: Callable[[Dataset], Iterator[Found]]

    def findings(self, dataset: Dataset) -> list[Finding]:
        """What this rule finds."""
        return [Finding(self.name, self.severity, *found) for found in self.look(dataset)]


RULES: dict[str, Rule] = {}


def rule(severity: Severity) -> Callable[[Callable[[Dataset], Iterator[Found]]], Callable[[Dataset], Iterator[Found]]]:
    """Register a check under its function's name; the first line of its docstring says what it is about."""

    def register(look: Callable[[Dataset], Iterator[Found]]) -> Callable[[Dataset], Iterator[Found]]:
        about = (look.__doc__ or "").strip().splitlines()[0]
        RULES[look.__name__] = Rule(look.__name__, severity, about, look)
        return look

    return register


def count_of(count: int, what: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def images(count: int) -> str:
    """``1 image``, ``2 images``."""
    return count_of(count, "image")
