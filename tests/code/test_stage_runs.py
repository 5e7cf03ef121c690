"""The stages infection and pretrain in MLflow: live curves, evidence at the end, resumption, withdrawals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from chestflow.config import Infection, Segment
from chestflow.errors import TrackingError
from chestflow.segmentation.infection_fitting import fit_infection
from chestflow.tracking import comparison, seen, stage_runs, store
from chestflow.tracking.stage_runs import infection_run, pretraining_run
from tests import stores
from tests.code import taken_outs
from tests.code.infection_cases import SIDE, slice_rows, stand_in, tables

PARAMS = taken_outs.params()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = stores.give(tmp_path / "repository", monkeypatch)
    taken_outs.write_manifest(made / "out")
    return made


def only_run() -> Any:
    client = store.connect()
    experiment = client.get_experiment_by_name("chestflow-toys")
    (found,) = client.search_runs([experiment.experiment_id])
    return found


def test_the_segmenters_training_is_seen_as_it_goes_and_its_evidence_at_the_end(root: Path) -> None:
    with infection_run(PARAMS, "ct_slice") as log:
        assert log is not None
        log("ct_slice/final/training 0: first", {"loss": 0.9}, 1)
        log("ct_slice/final/training 0: first", {"loss": 0.8}, 2)
        log("ct_slice/final/pseudo-label round", {"dice": 0.65, "slices": math.nan}, 1)
        assert "infection/ct_slice/dice" not in only_run().data.metrics
        said = taken_outs.write_infection(root / "out")
    found, client = only_run(), store.connect()
    assert (found.info.run_name, found.info.status) == ("infection@ct_slice", "FINISHED")
    assert found.data.tags["stage"] == "infection@ct_slice"
    assert found.data.tags["mlflow.source.name"] == "stages/infection.py"
    assert found.data.tags["phantom"] == "no"
    losses = client.get_metric_history(found.info.run_id, "ct_slice/final/training-0-first/loss")
    assert [(point.step, point.value) for point in losses] == [(1, 0.9), (2, 0.8)]
    assert found.data.metrics["ct_slice/final/pseudo-label-round/dice"] == 0.65
    assert "ct_slice/final/pseudo-label-round/slices" not in found.data.metrics
    assert found.data.metrics["infection/ct_slice/dice"] == pytest.approx(said["figures"]["dice"]["value"])
    names = {Path(item.path).name for item in client.list_artifacts(found.info.run_id, "infection")}
    assert {"evidence.json", "pseudo.json"} <= names
    assert not list((root / ".checkpoints").rglob("*.json"))


def test_a_killed_segmenters_run_is_resumed_while_nothing_has_changed(root: Path) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), infection_run(PARAMS, "ct_slice") as log:
        stopped(log("ct_slice/final/training 0: first", {"loss": 0.9}, 1))
    assert only_run().info.status == "KILLED"
    with infection_run(PARAMS, "ct_slice") as log:
        log("ct_slice/final/training 0: first", {"loss": 0.9}, 1)
        log("ct_slice/final/training 0: first", {"loss": 0.8}, 2)
        taken_outs.write_infection(root / "out")
    points = store.connect().get_metric_history(only_run().info.run_id, "ct_slice/final/training-0-first/loss")
    assert [point.step for point in points] == [1, 2]


def test_the_stages_log_names_modality_network_and_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    rows = slice_rows(tmp_path, 12, unlabelled=4)
    manifest, splits, groups = tables(rows, {row["image_id"]: "test" for row in rows[:12]})  # cross-fits two halves
    own = {"sets": ["a"], "backbone": "resnet18", "channel": 8, "size": SIDE, "scales": [1.0], "epochs": 1}
    pseudo = {"sets": ["a"], "chunk": 2, "epochs": 1, "batch_size": 4}
    settings = Infection.model_validate({"ct_slice": {**own, "pseudo": pseudo}})
    said = []
    fit_infection(
        "ct_slice", manifest, splits, groups, settings, Segment(), tmp_path, seed=1, threads=1, workers=1,
        log=lambda what, figures, step: said.append((what, step)),
    )  # fmt: skip
    assert len(set(said)) == len(said)  # no two curves share a name
    for network in ("final", "half-0", "half-1"):
        assert (f"ct_slice/{network}/training 1: round", 1) in said
        assert (f"ct_slice/{network}/pseudo-label round", 2) in said


def test_without_sets_nothing_is_recorded_and_no_store_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "connect", lambda: pytest.fail("the store was asked"))
    with infection_run(taken_outs.params(infection={}), "ct_slice", out=tmp_path, checkpoints=tmp_path) as log:
        assert log is None


def test_a_store_that_is_gone_at_the_end_does_not_cost_the_stage(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise TrackingError("the server is gone")

    monkeypatch.setattr(stage_runs, "attach_infection", refuse)
    with infection_run(PARAMS, "ct_slice"):
        taken_outs.write_infection(root / "out")
    assert capsys.readouterr().err.count("the server is gone") == 1
    assert only_run().info.status == "FINISHED"


def test_a_pretraining_shows_its_settings_its_curve_and_its_images(root: Path) -> None:
    with pretraining_run(PARAMS, "moco") as run:
        run.metrics({"train/loss": 5.75, "train/found": 0.2, "lr": 0.1}, 1)
        taken_outs.write_pretraining(root / "out")
    found = only_run()
    assert found.info.run_name == "pretrain@moco"
    assert found.data.params["backbone"] == "resnet18"
    assert found.data.tags["cohort"] == "slices"
    assert found.data.metrics["train/loss"] == 5.75
    assert found.data.metrics["pretraining/loss"] == 5.5
    (given,) = found.inputs.dataset_inputs
    assert '"num_rows": 3' in given.dataset.profile


def test_withdrawals_find_these_runs_and_comparisons_leave_them_out(root: Path) -> None:
    with infection_run(PARAMS, "ct_slice"):
        taken_outs.write_infection(root / "out")
    with pretraining_run(PARAMS, "moco"):
        taken_outs.write_pretraining(root / "out")
    assert [(saw.name, saw.roles) for saw in seen.runs_that_saw("p-a-0")] == [
        ("infection@ct_slice", ("masks",)), ("pretrain@moco", ("pretrain",)),
    ]  # fmt: skip
    assert ("infection@ct_slice", ("unlabelled",)) in [(saw.name, saw.roles) for saw in seen.runs_that_saw("p-b-0")]
    assert seen.runs_that_saw("p-a-2") == []
    assert comparison.newest(PARAMS) == []
