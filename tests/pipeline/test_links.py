"""The link between a stage's outs and its MLflow run holds where DVC does not run the stage again."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import yaml

from tests.pipeline.conftest import Repository

RUN = "ds_uniform"


def _run_id(root: Path) -> str:
    return json.loads((root / f"out/train/{RUN}/0/run.json").read_text())["mlflow_run_id"]


def _rows(root: Path, query: str) -> list[tuple]:
    with sqlite3.connect(root / "mlflow.db") as database:
        return database.execute(query).fetchall()


def _candidates(root: Path) -> dict[str, int]:
    """Each registered model and the version that its alias ``candidate`` names."""
    query = "select a.name, a.version from registered_model_aliases a join model_versions v"
    return dict(_rows(root, f"{query} on a.name = v.name and a.version = v.version where a.alias = 'candidate'"))


@pytest.fixture
def copy(tiny: Repository, tmp_path: Path) -> Repository:
    """The tiny repository with all its results, to be changed freely."""
    root = tmp_path / "chestflow"
    shutil.copytree(tiny.root, root, symlinks=True)
    return Repository(root)


def test_every_run_and_ensemble_is_registered(tiny: Repository) -> None:
    values = yaml.safe_load((tiny.root / "params.yaml").read_text())
    names = [*values["runs"], *values["ensembles"]]
    assert _candidates(tiny.root) == {f"chestflow-{name}": 1 for name in names}


def test_a_run_cache_hit_brings_the_run_back(copy: Repository) -> None:
    params = copy.root / "params.yaml"
    before, run_id = params.read_text(), _run_id(copy.root)
    weights = (copy.root / f"out/train/{RUN}/0/weights.safetensors").read_bytes()
    values = yaml.safe_load(before)
    values["runs"][RUN]["config"]["lr"] = 0.0001
    params.write_text(yaml.safe_dump(values, sort_keys=False))
    copy.run("dvc", "repro", f"train@{RUN}-0")
    assert _run_id(copy.root) != run_id
    params.write_text(before)
    done = copy.run("dvc", "repro", f"train@{RUN}-0")
    assert "cached" in done.stdout + done.stderr
    assert _run_id(copy.root) == run_id
    assert (copy.root / f"out/train/{RUN}/0/weights.safetensors").read_bytes() == weights


def test_a_clone_that_pulled_gets_its_runs_and_models_back(tiny: Repository, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny.root, source, symlinks=True)
    origin = Repository(source)
    origin.run("dvc", "remote", "add", "-d", "store", str(tmp_path / "remote"))
    origin.run("git", "commit", "-qam", "remote")
    origin.run("dvc", "push", "-q")
    clone = Repository(tmp_path / "clone")
    origin.run("git", "clone", "-q", str(source), str(clone.root))
    clone.run("dvc", "pull", "-q")
    assert not (clone.root / "mlflow.db").exists()
    clone.run("chestflow", "tracking", "init")
    clone.run("chestflow", "register")
    run_id = _run_id(clone.root)
    tags = dict(_rows(clone.root, f"select key, value from tags where key like '%restored%' or value = '{run_id}'"))
    assert tags, "the run was not re-created and marked"
    assert _candidates(clone.root) == _candidates(tiny.root)
    assert "Running stage" not in clone.run("dvc", "repro", "--dry", "evaluate@dual_sampling").stdout


def test_a_temporary_experiment_is_recorded_in_the_same_store(copy: Repository) -> None:
    before = len(_rows(copy.root, "select run_uuid from runs"))
    copy.run("dvc", "exp", "run", "--temp", "-S", f"runs.{RUN}.config.lr=0.0002", f"train@{RUN}-0")
    after = _rows(copy.root, "select run_uuid, status from runs")
    assert len(after) == before + 1, "the experiment's run did not reach the repository's own store"
    assert all(status == "FINISHED" for _, status in after)
