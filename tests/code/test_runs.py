"""The link between a stage's outs and its MLflow run holds through kills, run cache, clones and experiment folders."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest

from chestflow.errors import TrackingError
from chestflow.files import write_json
from chestflow.tracking import provenance, runs, seen, store
from tests import stores
from tests.model import toy_models

PARAMS = toy_models.params()


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("outs") / "out"
    toy_models.write_outs(out)
    return out


@pytest.fixture
def root(tmp_path: Path, outs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = stores.give(tmp_path / "repository", monkeypatch)
    shutil.copytree(outs, made / "out")
    return made


def _status(run_id: str) -> str:
    return store.connect().get_run(run_id).info.status


def _trained(root: Path, run_id: str) -> None:
    """What a training leaves that recording needs."""
    folder = root / "out/train/plain/0"
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"phase": "a", "epoch": [1, 2], "lr": 0.1, "best": True, "train_loss": [0.7, 0.6], "tune_auroc": [0.5, None]}
    pd.DataFrame(rows).to_csv(folder / "history.csv", index=False)
    write_json(folder / "run.json", {"mlflow_run_id": run_id})


def test_a_run_says_what_made_it(root: Path) -> None:
    with runs.training_run(PARAMS, "plain", 0) as run:
        run.metrics({"train/loss": 0.5}, 1)
        run.metrics({"train/loss": 0.4}, 2)
    client = store.connect()
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "plain-fold0"
    assert client.get_experiment(found.info.experiment_id).name == "chestflow-toys"
    tags = found.data.tags
    assert tags["stage"] == "train@plain-0"
    assert tags["phantom"] == "yes"
    assert tags["data_md5"] == f"manifest:{tags['data_md5'].split(':')[1]}"
    assert tags["git_commit"] == "unknown" or len(tags["git_commit"]) == 40
    assert len(tags["params_hash"]) == 16
    assert found.data.params["backbone"] == "squeezenet1_1"
    assert found.data.params["fold"] == "0"
    assert [p.step for p in client.get_metric_history(run.run_id, "train/loss")] == [1, 2]
    (given,) = found.inputs.dataset_inputs
    assert given.dataset.name == "xrays-fold0"
    assert '"num_rows": 64' in given.dataset.profile
    assert not list((root / ".checkpoints").rglob("*.json"))


def test_the_md5_is_the_one_that_dvc_tracks(root: Path) -> None:
    (root / "data.dvc").write_text("outs:\n- md5: abc.dir\n  path: data/phantom\n")
    assert provenance.data_md5(PARAMS, "plain", root / "out") == "phantom:abc.dir"


def test_other_parameters_give_another_hash_and_other_runs_do_not_matter() -> None:
    first = provenance.params_hash(provenance.training_sections(PARAMS, "plain", 0))
    values = PARAMS.model_dump(mode="json", by_alias=True)
    values["runs"]["even"]["seed"] = 77
    other = toy_models.params(runs=values["runs"])
    assert provenance.params_hash(provenance.training_sections(other, "plain", 0)) == first
    values["runs"]["plain"]["seed"] = 77
    other = toy_models.params(runs=values["runs"])
    assert provenance.params_hash(provenance.training_sections(other, "plain", 0)) != first


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_breaks_is_not_left_running(root: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), runs.training_run(PARAMS, "plain", 0) as run:
        raise error
    assert _status(run.run_id) == status


SCRIPT = """
import os, signal
from chestflow.tracking import runs
from tests.model import toy_models
with runs.training_run(toy_models.params(), "plain", 0) as run:
    run.metrics({{"train/loss": 0.9}}, 1)
    run.metrics({{"train/loss": 0.8}}, 2)
    print(run.run_id, flush=True)
    os.kill(os.getpid(), signal.{signal})
    signal.pause()
"""


@pytest.mark.parametrize(("name", "left"), [("SIGTERM", "KILLED"), ("SIGKILL", "RUNNING")])
def test_a_killed_run_is_resumed_and_not_doubled(root: Path, repository: Path, name: str, left: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(repository), str(repository / "src")])}
    script = textwrap.dedent(SCRIPT).format(signal=name)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == (128 + signal.SIGTERM if name == "SIGTERM" else -signal.SIGKILL), done.stderr
    killed = done.stdout.strip()
    assert _status(killed) == left
    with runs.training_run(PARAMS, "plain", 0) as run:
        run.metrics({"train/loss": 0.8}, 2)
        run.metrics({"train/loss": 0.7}, 3)
    assert run.run_id == killed
    client = store.connect()
    assert [p.step for p in client.get_metric_history(killed, "train/loss")] == [1, 2, 3]
    assert _status(killed) == "FINISHED"
    experiment = client.get_experiment_by_name("chestflow-toys").experiment_id
    assert len(client.search_runs([experiment])) == 1


def test_a_dead_attempt_with_other_parameters_is_marked(root: Path) -> None:
    client = store.connect()
    dead = runs._begin(client, PARAMS, "plain", 0, root / "out")
    write_json(root / ".checkpoints/mlflow/plain-0.json", {"run_id": dead, "state": "of other parameters"})
    with runs.training_run(PARAMS, "plain", 0) as run:
        pass
    assert run.run_id != dead
    assert _status(dead) == "KILLED"


def test_only_the_first_process_of_a_distributed_training_records(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with runs.training_run(PARAMS, "plain", 0) as run:
        run.metrics({"train/loss": 0.5}, 1)
    assert store.connect().get_experiment_by_name("chestflow-toys") is None


def test_a_store_that_fails_in_the_middle_does_not_cost_the_training(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TrackingError("the server is gone")

    with runs.training_run(PARAMS, "plain", 0) as run:
        monkeypatch.setattr(runs, "log_metrics", refuse)
        run.metrics({"train/loss": 0.5}, 1)
        run.metrics({"train/loss": 0.4}, 2)
    assert capsys.readouterr().err.count("the server is gone") == 1
    assert _status(run.run_id) == "FINISHED"


def test_outs_from_the_run_cache_keep_their_run(root: Path) -> None:
    with runs.training_run(PARAMS, "plain", 0) as run:
        pass
    _trained(root, run.run_id)
    assert runs.ensure_run(PARAMS, "plain", 0) == run.run_id


def test_a_fresh_clone_restores_the_run_once_and_says_so(root: Path) -> None:
    _trained(root, "0" * 32)
    restored = runs.ensure_run(PARAMS, "plain", 0)
    assert restored != "0" * 32
    assert runs.ensure_run(PARAMS, "plain", 0) == restored
    client = store.connect()
    found = client.get_run(restored)
    assert found.data.tags["restored"] == "yes"
    assert found.data.tags["restored_from"] == "0" * 32
    assert found.info.status == "FINISHED"
    assert [p.value for p in client.get_metric_history(restored, "train/loss")] == [0.7, 0.6]
    assert [p.value for p in client.get_metric_history(restored, "tune/auroc")] == [0.5]


def test_an_experiment_folder_writes_to_the_repository_that_owns_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    shutil.copytree(root / "out", temporary / "out")
    monkeypatch.chdir(temporary)
    with runs.training_run(PARAMS, "plain", 0) as run:
        pass
    shutil.rmtree(temporary)
    monkeypatch.chdir(root)
    assert _status(run.run_id) == "FINISHED"
    assert [path.parts[-4] for path in (root / "mlruns").rglob("images.csv")] == [run.run_id]


def test_runs_that_saw_a_patient(root: Path) -> None:
    with runs.training_run(PARAMS, "plain", 0) as run:
        pass
    with runs.training_run(PARAMS, "even", 0) as volumes:
        pass
    found = seen.runs_that_saw("phantom-p3")
    assert {(saw.run_id, saw.name, saw.roles) for saw in found} == {
        (run.run_id, "plain-fold0", ("train",)),
        (volumes.run_id, "even-fold0", ("train",)),
    }
    assert seen.runs_that_saw("phantom-nobody") == []
