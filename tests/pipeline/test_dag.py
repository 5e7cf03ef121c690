"""Each stage depends on what its code is made of, and params.yaml fits dvc.yaml."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from chestflow import dag, fingerprint
from chestflow.config import load
from chestflow.data.sources import base as sources
from chestflow.files import read_json
from chestflow.fingerprint import SOURCE
from chestflow.methods import registry

STAGES = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]


def _body(stage: dict) -> dict:
    return stage.get("do", stage)


def _read(folder: Path) -> dict[str, dict[str, str]]:
    return {p.relative_to(folder).with_suffix("").as_posix(): read_json(p) for p in folder.rglob("*.json")}


@pytest.fixture(scope="module")
def code(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    out = tmp_path_factory.mktemp("code")
    fingerprint.write(repository / "stages", out)
    return _read(out)


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_depends_on_its_own_code(code: dict[str, dict[str, str]], name: str) -> None:
    deps = _body(STAGES[name])["deps"]
    if name == "fingerprint":
        assert deps == ["src/chestflow", "stages"]
    elif name == "register":  # a new version only where something that it holds is new
        assert f"stages/{name}.py" in deps
    else:
        assert f"out/code/{name}.json" in deps
        assert f"stages/{name}.py" in code[name]
    fingerprints = {d.removeprefix("out/code/").removesuffix(".json") for d in deps if d.startswith("out/code/")}
    assert {f for f in fingerprints if "${" not in f} <= {*code, "methods", "sources"}
    assert not any(dep.startswith("src/") for dep in deps if name != "fingerprint")


def test_trainings_depend_on_their_methods_and_ingests_on_their_adapters(code: dict[str, dict[str, str]]) -> None:
    for stage in ("train", "tune_tau"):
        deps = _body(STAGES[stage])["deps"]
        assert {"out/code/methods/${item.methods[0]}.json", "out/code/methods/${item.methods[1]}.json"} <= set(deps)
    assert "out/code/sources/${item}.json" in _body(STAGES["ingest"])["deps"]
    assert {f"methods/{name}" for name in registry.names()} | {f"sources/{s}" for s in sources.names()} <= code.keys()


def _depended_on(code: dict[str, dict[str, str]]) -> set[str]:
    """The files of the fingerprints that some stage depends on; what DVC fills in stands for all of its folder's."""
    deps = {re.sub(r"\$\{.*?\}", "*", dep) for stage in STAGES.values() for dep in _body(stage)["deps"]}
    found: set[str] = set()
    for name, files in code.items():
        path = Path(f"out/code/{name}.json")
        if any(path.match(dep) or path.parent == Path(dep) for dep in deps if dep.startswith("out/code/")):
            found |= files.keys()
    return found


def test_every_packaged_data_file_is_some_stages_code(code: dict[str, dict[str, str]]) -> None:
    packaged = {p for p in SOURCE.rglob("*") if p.is_file() and p.suffix not in {".py", ".pyc", ".typed"}}
    assert packaged
    assert {p.relative_to(SOURCE).as_posix() for p in packaged} <= _depended_on(code)


#: What commands and served models alone use: no stage's code.
IDLE = {
    "data/exposure.py", "data/placing.py", "data/sources/unsupported.py", "data/versioning.py", "data/withdrawal.py",
    "profiles.py",
}  # fmt: skip
IDLE_FOLDERS = ("data/phantom/", "serving/")  # the phantoms' generator, and what answers in a served model


def test_every_module_is_some_stages_code_but_those_listed(code: dict[str, dict[str, str]]) -> None:
    """Beside messages, records and commands, which shape no out."""
    idle = {p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*.py")} - _depended_on(code)
    idle = {name for name in idle if not name.startswith(fingerprint.NOT_CODE) and not name.endswith("__init__.py")}
    assert {name for name in idle if not name.startswith(IDLE_FOLDERS)} == IDLE


@pytest.mark.parametrize("method", registry.names())
def test_a_methods_code_is_its_own(code: dict[str, dict[str, str]], method: str) -> None:
    files = set(code[f"methods/{method}"])
    assert f"methods/{method}.py" in files
    assert not files & {f"methods/{other}.py" for other in set(registry.names()) - {method, "baselines"}}


def test_the_code_of_a_network_that_is_taken_over_counts_too(repository: Path) -> None:
    train = dag.tables(load(repository / "params.yaml"))["train"]
    assert train["multi_knowledge-0"]["methods"] == ["multi_knowledge", "baselines"]
    assert train["resnet18-0"]["methods"] == ["baselines", "baselines"]


def test_an_edit_of_a_file_reaches_those_that_import_it(repository: Path, tmp_path: Path) -> None:
    """netvlad.py is covidnet's alone, the engine belongs to all trainings, a comment counts as an edit."""
    package, stages = tmp_path / "chestflow", tmp_path / "stages"
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(repository / "stages", stages, ignore=shutil.ignore_patterns("__pycache__"))

    def written(out: str) -> dict[str, dict[str, str]]:
        command = [sys.executable, "stages/fingerprint.py"]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True)
        return _read((tmp_path / "out" / "code").rename(tmp_path / out))

    def changed(file: str, out: str) -> set[str]:
        path = tmp_path / file
        path.write_text(path.read_text() + "# edited\n")
        before.update(now)
        now.update(written(out))
        return {name for name in now if now[name] != before[name]}

    before: dict[str, dict[str, str]] = {}
    now = written("first")
    assert changed("chestflow/nn/netvlad.py", "second") == {"methods/covidnet"}
    engine = changed("chestflow/training/engine.py", "third")
    assert {"train", "tune_tau"} <= engine
    assert not engine & {"tune", "evaluate", "report", "segment", "preprocess", "split"}
    assert changed("chestflow/tracking/registry.py", "fourth") == set()
    assert changed("stages/tune.py", "fifth") == {"tune"}


def test_a_search_for_tau_does_not_wait_for_the_code_of_trainings(repository: Path) -> None:
    taken = dag.tables(load(repository / "params.yaml"))["tau"]["multi_knowledge-0"]["uses"]
    assert taken[-1] == "out/code/tune_tau.json"
    assert not any("train.json" in path for path in taken)


def test_what_reads_all_methods_or_adapters_depends_on_them() -> None:
    assert "out/code/methods" in _body(STAGES["report"])["deps"]
    assert "out/code/sources" in _body(STAGES["validate"])["deps"]


def test_closure_follows_late_imports(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("def f():\n    from chestflow.nn.output import Output\n    return Output\n")
    assert fingerprint.closure(script) == {"nn/output.py"}


def test_git_ignores_every_out_and_no_code(repository: Path) -> None:
    ignored = (repository / ".gitignore").read_text().splitlines()
    outs = [out for stage in STAGES.values() for out in _body(stage).get("outs", [])]
    assert outs
    assert all(out.startswith("out/") for out in outs)
    assert "/out/" in ignored


def test_the_committed_tables_follow_from_the_committed_parameters(repository: Path) -> None:
    dag.require_current(load(repository / "params.yaml"), repository / dag.FILE)
