"""The stages that dvc.yaml makes of parameters, as DVC resolves them, and what an edit of params.yaml reaches."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chestflow import dag
from chestflow.config import parse


@dataclass(frozen=True)
class Graph:
    """By stage: the keys of params.yaml that it depends on, its outs, and the stages that it depends on directly."""

    params: dict[str, set[str]]
    outs: dict[str, set[str]]
    before: dict[str, set[str]]

    def after(self, starts: Iterable[str]) -> set[str]:
        """The stages themselves and all that depend on them, however indirectly."""
        found = set(starts)
        while more := {name for name, needs in self.before.items() if needs & found} - found:
            found |= more
        return found

    def readers(self, key: str) -> set[str]:
        """The stages that depend on a dotted key of params.yaml, on a section around it or on a part of it."""

        def meet(one: str, other: str) -> bool:
            return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")

        return {name for name, keys in self.params.items() if any(meet(key, one) for one in keys)}

    def touched(self, key: str) -> set[str]:
        """The stages that an edit of a key may run: its readers, and all after them even where nothing changes."""
        return self.after(self.readers(key))


def resolve(dvc_yaml: Path, values: dict[str, Any], folder: Path) -> Graph:
    """Read the stages in a repository of their own.

    Args:
        dvc_yaml: the pipeline's.
        values: of params.yaml, complete.
        folder: an empty one, for that repository.
    """
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(dvc_yaml, folder / "dvc.yaml")
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    dag.write(parse(values), folder / dag.FILE)
    with Repo.init(str(folder), no_scm=True) as repo:
        stages = {stage.name: stage for stage in repo.index.stages}
        params = {
            name: {key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params}
            for name, stage in stages.items()
        }
        outs = {name: {_relative(out, folder) for out in stage.outs} for name, stage in stages.items()}
        graph = repo.index.graph  # an edge leads from a stage to what it depends on
        before = {name: {one.name for one in graph.successors(stage)} for name, stage in stages.items()}
    return Graph(params, outs, before)


def _relative(out: Any, folder: Path) -> str:
    return Path(out.fs_path).relative_to(folder.resolve()).as_posix()
