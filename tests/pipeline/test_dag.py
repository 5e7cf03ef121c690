"""dvc.yaml lists what each stage's code is made of, and params.yaml fits it."""

import re
from pathlib import Path

import pytest
import yaml

from chestflow import dag
from chestflow.config import load
from chestflow.data.sources import base as sources
from chestflow.methods import registry

STAGES = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]


def _body(stage: dict) -> dict:
    return stage.get("do", stage)


def _listed(stage: dict) -> set[str]:
    return {dep.removeprefix("src/chestflow/") for dep in _body(stage)["deps"] if dep.startswith("src/chestflow/")}


def _imported(repository: Path, name: str) -> set[str]:
    files = dag.closure(repository / f"stages/{name}.py")
    if name == "ingest":  # adapters are found by name
        for adapter in sources.names():
            files |= dag.closure(dag.SOURCE / "data" / "sources" / f"{adapter}.py")
    return files


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_lists_its_script_and_all_that_it_imports(repository: Path, name: str) -> None:
    script = f"stages/{name}.py"
    assert script in _body(STAGES[name])["deps"]
    imported = _imported(repository, name)
    listed = _listed(STAGES[name])
    folders = tuple(d + "/" for d in listed if (dag.SOURCE / d).is_dir())
    missing = {f for f in imported if f not in listed and not (folders and f.startswith(folders))}
    assert not missing, f"dvc.yaml: stage {name} lacks {sorted(missing)}"


@pytest.mark.parametrize("name", STAGES)
def test_no_stage_lists_code_that_it_does_not_import(repository: Path, name: str) -> None:
    imported = _imported(repository, name)
    idle = {f for f in _listed(STAGES[name]) if f.endswith(".py") and "${" not in f and f not in imported}
    assert not idle, f"dvc.yaml: stage {name} lists {sorted(idle)}, which it does not import"


def test_every_packaged_data_file_is_some_stages_dep() -> None:
    packaged = {p for p in dag.SOURCE.rglob("*") if p.is_file() and p.suffix not in {".py", ".pyc", ".typed"}}
    listed = set().union(*(_listed(stage) for stage in STAGES.values()))
    files = {p.relative_to(dag.SOURCE).as_posix() for p in packaged}
    missing = {file for file in files if not any(f"{file}/".startswith(f"{dep}/") for dep in listed)}
    assert packaged
    assert not missing


@pytest.mark.parametrize("method", registry.names())
def test_a_methods_code_reaches_its_training_stage(repository: Path, method: str) -> None:
    files = dag.method_code(method)
    assert len(files) == dag.CODE_SLOTS
    assert files[0] == f"src/chestflow/methods/{method}.py"
    assert all((repository / file).is_file() for file in files)
    slots = [d for d in _body(STAGES["train"])["deps"] if re.fullmatch(r"\$\{item\.code\[\d+\]\}", d)]
    assert len(slots) == dag.CODE_SLOTS
    others = set(registry.names()) - {method}
    assert not {f for f in files if Path(f).stem in others and "/methods/" in f}


def test_the_code_of_a_network_that_is_taken_over_counts_too() -> None:
    files = dag.method_code("multi_knowledge", "decaps")
    assert files[0].endswith("/multi_knowledge.py")
    assert set(dag.method_code("multi_knowledge")) | set(dag.method_code("decaps")) == set(files)


def test_closure_follows_late_imports(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("def f():\n    from chestflow.nn.output import Output\n    return Output\n")
    assert dag.closure(script) == {"nn/output.py"}


def test_git_ignores_every_out_and_no_code(repository: Path) -> None:
    ignored = (repository / ".gitignore").read_text().splitlines()
    outs = [out for stage in STAGES.values() for out in _body(stage).get("outs", [])]
    assert outs
    assert all(out.startswith("out/") for out in outs)
    assert "/out/" in ignored


def test_the_committed_tables_follow_from_the_committed_parameters(repository: Path) -> None:
    dag.require_current(load(repository / "params.yaml"), repository / dag.FILE)
