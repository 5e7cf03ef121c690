"""The tables that dvc.yaml iterates over, and the source files that each stage's code is made of.

DVC's templates cannot nest (``${runs.${item}.recipe}``), so `chestflow config` writes one table a family of stages into
the ``dag`` section of params.yaml: run x fold for training, name x fold for tuning, and so on. Each stage checks at its
start that the tables still follow from the rest of params.yaml.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

import chestflow
from chestflow.config import MEMBER_SLOTS, Params
from chestflow.errors import ConfigError
from chestflow.training import uses

SOURCE = Path(chestflow.__file__).parent
#: How many files of its own a method may import besides what every training stage imports (slots in dvc.yaml).
CODE_SLOTS = 12
#: How many files of other stages a run may take over: a network's two, a pretraining's, a tuned tau's.
USES_SLOTS = 4
#: Not listed as stage deps: their values reach DVC as params, or they only shape messages and records, never an out.
NOT_CODE = ("__init__.py", "config.py", "config_", "dag.py", "errors.py", "tracking/", "cli/")


def _modules(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "chestflow"}


@cache
def _imports(file: Path) -> frozenset[Path]:
    files = set()
    for module in _modules(ast.parse(file.read_text())):
        path = SOURCE.joinpath(*module.split(".")[1:])
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                files.add(candidate)
    return frozenset(files)


def closure(file: Path) -> set[str]:
    """Files of the package that ``file`` imports, directly or not, imports inside functions included.

    Returns:
        Paths relative to the package (``nn/netvlad.py``), without those in :data:`NOT_CODE`.
    """
    seen: set[Path] = set()
    todo = [file]
    while todo:
        for found in _imports(todo.pop()) - seen:
            relative = found.relative_to(SOURCE).as_posix()
            seen.add(found)
            if not relative.startswith(NOT_CODE):
                todo.append(found)
    names = {path.relative_to(SOURCE).as_posix() for path in seen}
    return {name for name in names if not name.startswith(NOT_CODE) and not name.endswith("__init__.py")}


def method_code(method: str) -> list[str]:
    """The files a method adds to what every training stage imports, its own first, padded to :data:`CODE_SLOTS`.

    Raises:
        ConfigError: the method imports more files than dvc.yaml has slots for.
    """
    own = SOURCE / "methods" / f"{method}.py"
    common = closure(SOURCE / "training" / "run.py")
    files = [f"methods/{method}.py", *sorted(closure(own) - common - {f"methods/{method}.py"})]
    if len(files) > CODE_SLOTS:
        raise ConfigError(f"method {method} imports {len(files)} files; dvc.yaml has slots for {CODE_SLOTS}: add slots")
    paths = [f"src/chestflow/{name}" for name in files]
    return paths + [paths[0]] * (CODE_SLOTS - len(paths))


def member_slots(params: Params, name: str) -> list[str]:
    """The runs that a run or an ensemble is made of, the first repeated to :data:`~chestflow.config.MEMBER_SLOTS`."""
    runs = params.runs_of(name)
    return runs + [runs[0]] * (MEMBER_SLOTS - len(runs))


def taken_slots(params: Params, run: str, fold: int, *, tau: bool = True) -> list[str]:
    """What a run takes over from other stages, the training's script repeated to :data:`USES_SLOTS`."""
    files = [path.as_posix() for path in uses.files(params, run, fold, Path("out"))]
    files = [f for f in files if tau or "/tau/" not in f]
    return files + ["stages/train.py"] * (USES_SLOTS - len(files))


def tables(params: Params) -> dict[str, Any]:
    """The ``dag`` section that follows from the rest of the parameters."""
    train, tau, tune, ensemble, evaluate = {}, {}, {}, {}, {}
    for fold in params.folds:
        for name, run in params.runs.items():
            item = {"run": name, "fold": fold, "task": run.task, "recipe": run.recipe, "code": method_code(run.method)}
            train[f"{name}-{fold}"] = {**item, "uses": taken_slots(params, name, fold)}
            if uses.tau_is_tuned(params, name):
                tau[f"{name}-{fold}"] = {**item, "uses": taken_slots(params, name, fold, tau=False)}
        for name in params.ensembles:
            ensemble[f"{name}-{fold}"] = {"name": name, "fold": fold, "members": member_slots(params, name)}
        for name in [*params.runs, *params.ensembles]:
            tune[f"{name}-{fold}"] = {"name": name, "fold": fold}
    for name in [*params.runs, *params.ensembles]:
        members = member_slots(params, name)
        packs = [params.runs[run].recipe for run in members]
        task = params.runs[members[0]].task
        evaluate[name] = {"name": name, "task": task, "members": members, "recipes": packs, "recipe": packs[0]}
    pretrain = {name: {"name": name, "recipe": section.recipe} for name, section in params.pretraining.items()}
    recipes = sorted(params.packed())
    shortcuts: dict[str, Any] = {}
    for run in params.runs.values():  # a task's pictures are seen as its first run sees them
        shortcuts.setdefault(run.task, {"task": run.task, "recipe": run.recipe})
    return {
        "recipes": recipes, "pretrain": pretrain, "tau": tau, "train": train, "tune": tune, "ensemble": ensemble,
        "shortcuts": shortcuts, "evaluate": evaluate,
    }  # fmt: skip


def require_current(params: Params) -> None:
    """Raise :class:`ConfigError` when the ``dag`` section does not follow from the rest of params.yaml."""
    if params.dag != tables(params):
        raise ConfigError(
            "params.yaml: its dag section does not follow from runs, ensembles and folds: run `chestflow config --sync`"
        )
