"""What each stage's code is made of: the files that its script imports, however indirectly, with their hashes.

The stage ``fingerprint`` writes one small JSON file for each stage, method and adapter under ``out/code/``, and the
other stages depend on these. An edit of a file so reaches the stages that import it and no others, dvc.yaml needs no
lists of files, and dvc.lock, which DVC reads and rewrites around every stage, stays half as long.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import chestflow
from chestflow.data.sources import base as sources
from chestflow.files import sha256_file, write_json
from chestflow.methods import registry

SOURCE = Path(chestflow.__file__).parent
#: Not counted: the schema, whose values reach DVC as params, and messages, records (MLflow) and commands.
NOT_CODE = ("__init__.py", "config.py", "config_", "dag.py", "errors.py", "fingerprint.py", "tracking/", "cli/")
#: Files of the package that are no Python, by the stages that read them.
READ = {
    "validate": ("data/expectations",),
    "evaluate": ("evaluation/paper_figures",),
    "report": ("evaluation/paper_figures", "evaluation/templates"),
}


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


def made_of(stages: Path) -> dict[str, set[Path]]:
    """The files behind every fingerprint.

    Args:
        stages: the folder of the stages' scripts.

    Returns:
        Files by the fingerprint's name: ``train`` for a stage, ``methods/covidnet`` for what a method adds to its
        training, ``sources/rsna`` for what an adapter adds to its set's ingest. Both are found by name, not imported.
    """
    made = {}
    for script in sorted(stages.glob("*.py")):
        read = {p for folder in READ.get(script.stem, ()) for p in (SOURCE / folder).rglob("*") if p.is_file()}
        made[script.stem] = {script, *(SOURCE / name for name in closure(script)), *read}
    by_name = {f"methods/{name}": f"methods/{name}.py" for name in registry.names()}
    by_name |= {f"sources/{name}": f"data/sources/{name}.py" for name in sources.names()}
    for name, file in by_name.items():
        made[name] = {SOURCE / file, *(SOURCE / other for other in closure(SOURCE / file))}
    return made


def write(stages: Path, out: Path) -> None:
    """Write every fingerprint: a JSON object with the sha256 of each file (``stages/train.py``, ``nn/pooling.py``)."""
    for name, files in made_of(stages).items():
        about = {_shown(path, stages): sha256_file(path) for path in files}
        write_json(out / f"{name}.json", about)


def _shown(path: Path, stages: Path) -> str:
    return f"stages/{path.name}" if path.parent == stages else path.relative_to(SOURCE).as_posix()
