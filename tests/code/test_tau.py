"""Tuning of tau: it trains heat-map branches, repeats itself after a kill, and keeps the paper's value in doubt."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from chestflow.config_runs import Tau
from chestflow.errors import ConfigError
from chestflow.files import read_json
from chestflow.training import uses
from chestflow.training.run import train_run
from chestflow.tuning import tau as tuning
from chestflow.tuning.studies import Axis, run_study
from chestflow.tuning.tau import Trained, Trials, tune_tau
from tests.model.knowledge_slices import params, write_workspace


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outs of the stages before, with a trained global run."""
    root = tmp_path_factory.mktemp("tau")
    threads = torch.get_num_threads()
    write_workspace(root / "out", params())
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """Outs of its own, for a test to write to."""
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path


def tuned(root: Path, given: SimpleNamespace, checkpoints: str = "c") -> dict[str, Any]:
    tune_tau("known", 0, given, root / "out", root / checkpoints)
    return read_json(root / "out/tune/tau/known/0.json")


def test_it_trains_writes_and_the_run_takes_what_it_chose(root: Path) -> None:
    found = tuned(root, params())
    assert found["trials"][0]["values"] == {"tau": 0.75}
    assert len(found["trials"]) == 3
    assert [point["tau"] for point in found["curve"]] == sorted({t["values"]["tau"] for t in found["trials"]})
    assert found["paper"]["tau"] == 0.75
    assert found["tau"] == (found["tuned"]["tau"] if found["use"] == "tuned" else 0.75)
    assert found["tuned"]["value"] >= found["paper"]["value"]
    assert 0.3 <= found["spread"]["lo"] <= found["spread"]["hi"] <= 0.95
    before = (root / "out/tune/tau/known/0.json").read_bytes()
    # a finished study trains nothing and writes the same bytes
    assert tuned(root, params()) == found
    assert (root / "out/tune/tau/known/0.json").read_bytes() == before
    assert read_json(root / "out/tau/known/0.json") == {"tau": found["tau"]}
    description = train_run(params(answers="heat"), "known", 0, root / "out", root / "c")
    assert description["input"]["uses"]["tau"] == found["tau"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Trials that need no training: three epochs, best near 0.5; what was trained is listed."""
    trained: list[float] = []

    def train(self: Trials, tau: float, report: Any) -> Trained:
        trained.append(tau)
        rng = np.random.default_rng(0)
        strength = 2 - 6 * abs(tau - 0.5)
        z = strength * (2 * self.target - 1) + rng.normal(0, 1.5, len(self.target))
        found = Trained(np.linspace(0.5, 0.5 + strength / 10, 3), np.stack([0 * z, z], 1).astype(np.float32))
        for step, value in enumerate(found.values, start=1):
            if report is not None:
                report(step, -float(value))
        return found

    monkeypatch.setattr(Trials, "_train", train)
    return trained


SEARCH = {"trials": 10, "epochs": 3, "prune_from": 3}


def test_killed_anywhere_it_ends_with_the_same_bytes(root: Path, quick: list[float], monkeypatch: Any) -> None:
    whole = tuned(root, params(SEARCH), "whole")
    assert any(trial["pruned"] for trial in whole["trials"])
    assert not whole["trials"][0]["pruned"]
    keep = Trials._train

    for at in (1, 4, 8):
        left = at

        def dies(self: Trials, tau: float, report: Any) -> Trained:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return keep(self, tau, report)

        with monkeypatch.context() as patch:
            patch.setattr(Trials, "_train", dies)
            with pytest.raises(KeyboardInterrupt):
                tuned(root, params(SEARCH), f"killed{at}")
        assert tuned(root, params(SEARCH), f"killed{at}") == whole


def test_killed_between_a_training_and_its_record_it_ends_the_same(
    root: Path, quick: list[float], monkeypatch: Any
) -> None:
    whole = tuned(root, params(SEARCH), "whole")
    real, left = tuning.score, 5

    def dies(*given: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "score", dies)
        with pytest.raises(KeyboardInterrupt):
            tuned(root, params(SEARCH), "killed")
    assert tuned(root, params(SEARCH), "killed") == whole


def test_a_larger_target_tops_up_and_trains_no_value_twice(root: Path, quick: list[float]) -> None:
    first = tuned(root, params({**SEARCH, "pruning": False, "trials": 4}))
    more = tuned(root, params({**SEARCH, "pruning": False, "trials": 9}))
    assert more["trials"][:4] == first["trials"]
    assert len(more["trials"]) == 9
    assert not any(trial["pruned"] for trial in more["trials"])
    assert len(quick) == len(set(quick))


def test_a_gain_beyond_doubt_puts_the_tuned_value_in_use(root: Path, quick: list[float]) -> None:
    found = tuned(root, params(SEARCH))
    assert abs(found["tuned"]["tau"] - 0.5) < 0.2
    assert found["use"] == ("tuned" if found["gain"]["lo"] > 0 else "paper")
    narrow = tuned(root, params({**SEARCH, "range": (0.74, 0.76)}), "narrow")
    assert narrow["use"] == "paper"
    assert narrow["tau"] == 0.75


def test_the_whole_range_can_be_searched(root: Path, quick: list[float]) -> None:
    found = tuned(root, params({**SEARCH, "range": (0.0, 1.0), "trials": 20, "pruning": False}))
    assert found["range"] == [0.0, 1.0]
    assert found["trials"][0]["values"] == {"tau": 0.75}
    assert all(0 <= tau <= 1 for tau in quick)
    assert min(quick) < 0.3
    assert max(quick) > 0.95
    assert Tau(range=(0.0, 1.0)).range == (0.0, 1.0)


def test_values_that_change_nothing_leave_the_papers_in_use(root: Path, monkeypatch: Any) -> None:
    def alike(self: Trials, tau: float, report: Any) -> Trained:
        z = np.random.default_rng(1).normal(0, 1, len(self.target))
        return Trained(np.array([0.5]), np.stack([0 * z, z], 1).astype(np.float32))

    monkeypatch.setattr(Trials, "_train", alike)
    found = tuned(root, params(SEARCH))
    assert (found["use"], found["tau"]) == ("paper", 0.75)
    assert found["gain"]["lo"] == found["gain"]["hi"] == 0


def test_another_range_that_ends_at_the_same_value_changes_nothing_that_training_takes(
    root: Path, monkeypatch: Any
) -> None:
    def alike(self: Trials, tau: float, report: Any) -> Trained:
        z = np.random.default_rng(1).normal(0, 1, len(self.target))
        return Trained(np.array([0.5]), np.stack([0 * z, z], 1).astype(np.float32))

    monkeypatch.setattr(Trials, "_train", alike)
    searches, taken = [], []
    for low in (0.3, 0.5):
        given = params({**SEARCH, "range": (low, 0.95)})
        searches.append(tuned(root, given, f"c{low}"))
        taken.append(uses.fingerprint(given, "known", 0, root / "out"))
    assert searches[0] != searches[1]
    assert taken[0] == taken[1]


def test_only_the_train_and_tune_roles_are_read(root: Path) -> None:
    trials = Trials(params(), "known", 0, root / "out", root / "c")
    assert set(trials.data.train["row"]) == set(range(18))
    assert set(trials.data.tune["row"]) == set(range(18, 30))
    assert trials.patients.tolist() == [f"slice-{i:03}" for i in range(18, 30)]
    assert trials.params.runs["known"].config["answers"] == "heat"
    # the search's range does not touch what a trial's result depends on
    assert Trials(params({"range": (0.5, 0.9)}), "known", 0, root / "out", root / "c").folder == trials.folder


def test_a_run_without_an_open_tau_is_refused(root: Path) -> None:
    for given, run in ((params(tau=None), "seen"), (params(), "known")):
        given.runs["known"].config["tau"] = 0.6
        with pytest.raises(ConfigError, match="nothing to tune"):
            tune_tau(run, 0, given, root / "out", root / "c")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"range": (0.8, 0.9)}, "must hold the paper's 0.75"),
        ({"range": (0.9, 0.3)}, "must rise"),
        ({"range": (0.3, 1.2)}, "must rise"),
        ({"trials": 1}, "greater than or equal to 2"),
        ({"criterion": "loss"}, "auroc"),
    ],
)
def test_impossible_searches_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Tau(**values)


def test_a_pruned_trial_counts_and_is_never_the_best(tmp_path: Path) -> None:
    import optuna

    def objective(values: dict[str, float], report: Any) -> float:
        for step in range(1, 4):
            report(step, values["x"] / step)
        return values["x"]

    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1)
    found = run_study(
        objective, {"x": Axis(0.0, 1.0)}, trials=12, seed=0, about={}, checkpoints=tmp_path, pruner=pruner
    )
    assert len(found.trials) == 12
    given_up = [trial for trial in found.trials if trial["pruned"]]
    assert given_up
    assert all(trial["reports"] < 3 for trial in given_up)
    assert found.objective == min(t["objective"] for t in found.trials if not t["pruned"])
