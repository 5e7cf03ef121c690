"""The mean of several runs: its form in params.yaml, weights, answers, maps, evaluation and the report's tables."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestflow import dag
from chestflow.config import MEMBER_SLOTS, Params, parse
from chestflow.errors import ConfigError, DataError
from chestflow.evaluation import report_methods
from chestflow.evaluation.calibration import probabilities
from chestflow.evaluation.evaluate import evaluate
from chestflow.tuning import calibration, mean_ensemble
from tests.code import study_outs

MEANS = {
    "both": {"members": ["ds_u", "ds_b"]},
    "searched": {"members": ["ds_b", "ds_u"], "weights": [1, 3], "tuned": True},
}


def _params(**changes: object) -> Params:
    return study_outs.params(ensembles={"ds": {"uniform": "ds_u", "balanced": "ds_b"}, **MEANS}, **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ``out`` folder with two runs and two means of them in two folds, evaluated."""
    folder = tmp_path_factory.mktemp("means")
    out, params = folder / "out", _params()
    study_outs.write(out)
    for fold in params.folds:
        for name in MEANS:
            mean_ensemble.tune_shares(name, fold, params, out, folder / "checkpoints")
            mean_ensemble.apply_shares(name, fold, params, out)
        for name in ("ds_u", "ds_b", *MEANS):
            calibration.tune(name, fold, params, out, folder / "checkpoints")
    for name in ("ds_u", *MEANS):
        evaluate(name, params, out)
    return out


def _evidence(out: Path, name: str) -> dict:
    return json.loads((out / "evaluate" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"members": ["ds_u", "nobody"]}, "ensembles.x.members names 'nobody'"),
        ({"members": ["ds_u"]}, "ensembles.x.members: List should have at least 2 items"),
        ({"members": ["ds_u", "ds_b", "ds_u"]}, "ensembles.x: members names a run twice"),
        ({"members": ["ds_u", "other"]}, "ensembles.x joins runs of different tasks"),
        ({"members": ["ds_u", "ds_b"], "weights": [1.0]}, "ensembles.x: weights has 1 numbers for 2 members"),
        ({"members": ["ds_u", "ds_b"], "weights": [1.0, -0.5]}, "ensembles.x.weights.1: Input should be greater"),
        ({"members": ["ds_u", "ds_b"], "weights": [0, 0]}, "ensembles.x: weights are all 0"),
        ({"members": ["ds_u", "ds_b"], "wieghts": [1, 1]}, "ensembles.x.wieghts is unknown"),
        ({"members": ["ds_u", "ds_b"], "uniform": "ds_u"}, "ensembles.x: give either members"),
        ({"weights": [1, 1]}, "ensembles.x: give either members"),
        ([], "ensembles.x: give either members"),
        ({"uniform": "ds_u"}, "ensembles.x.balanced: Field required"),
        ({"members": [f"run_{i}" for i in range(7)]}, "at most 6 items"),
    ],
)
def test_wrong_forms_are_refused_in_one_line(values: object, says: str) -> None:
    plain = study_outs.params().model_dump(mode="json", by_alias=True)
    plain["tasks"]["again"] = copy.deepcopy(plain["tasks"]["covid_vs_cap"])
    plain["runs"]["other"] = {**plain["runs"]["ds_u"], "task": "again"}
    plain["ensembles"]["x"] = values
    with pytest.raises(ConfigError) as caught:
        parse(plain)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_both_forms_come_back_from_their_plain_values() -> None:
    params = _params()
    again = parse(params.model_dump(mode="json", by_alias=True))
    assert again == params
    assert [again.ensembles[name].kind for name in ("ds", "both")] == ["dual", "mean"]
    assert again.runs_of("searched") == ["ds_b", "ds_u"]
    assert again.ensembles["searched"].shares == {"ds_b": 0.25, "ds_u": 0.75}
    assert again.task_of("both") == params.tasks["covid_vs_cap"]


def test_the_dag_repeats_the_first_member_to_fill_its_slots() -> None:
    tables = dag.tables(_params())
    assert tables["ensemble"]["searched-1"]["members"] == ["ds_b", "ds_u", *["ds_b"] * (MEMBER_SLOTS - 2)]
    assert tables["evaluate"]["ds_u"]["members"] == ["ds_u"] * MEMBER_SLOTS
    assert tables["evaluate"]["both"]["recipes"] == ["small"] * MEMBER_SLOTS


@pytest.mark.parametrize("members", [2, 4])
def test_the_fixed_point_is_the_least_log_loss(members: int) -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(members)
    p, weights = rng.beta(2, 1, (80, members)), rng.integers(0, 3, 80).astype(float)

    def loss(shares: np.ndarray) -> float:
        return float(-(weights * np.log(p @ shares)).sum() / weights.sum())

    found = mean_ensemble.best_shares(p, weights)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    simplex = {"type": "eq", "fun": lambda s: s.sum() - 1}
    start = np.full(members, 1 / members)
    free = minimize(loss, start, bounds=[(0, 1)] * members, constraints=[simplex], tol=1e-12)
    assert loss(found) == pytest.approx(free.fun, abs=1e-6)
    assert all(loss(found) <= loss(s) + 1e-6 for s in rng.dirichlet(np.ones(members), 200))


@pytest.mark.parametrize(("name", "shares"), [("both", (0.5, 0.5)), ("searched", None)])
def test_answers_are_the_weighted_mean_of_the_members(made: Path, name: str, shares: tuple | None) -> None:
    for fold in ("0", "1"):
        decided = json.loads((made / "tune" / "w" / name / f"{fold}.json").read_text())["used"]
        u, b = shares or (decided["ds_u"], decided["ds_b"])
        assert (u + b) == pytest.approx(1)
        for role in ("tune", "test"):
            joined, uniform, balanced = (
                pd.read_parquet(made / "predictions" / run / fold / f"{role}.parquet").sort_values("image_id")
                for run in (name, "ds_u", "ds_b")
            )
            assert joined["image_id"].tolist() == uniform["image_id"].tolist()
            assert set(joined["run"]) == {name}
            assert list(joined.columns) == list(uniform.columns)  # so no target in the test role
            for column in ("p_cap", "p_covid19"):
                np.testing.assert_allclose(
                    joined[column].to_numpy(), u * uniform[column].to_numpy() + b * balanced[column].to_numpy()
                )
            logits = joined[["logit_cap", "logit_covid19"]].to_numpy()
            np.testing.assert_allclose(probabilities(logits), joined[["p_cap", "p_covid19"]], atol=1e-6)


def test_without_a_search_no_trial_is_made_and_each_member_is_shown_alone(made: Path) -> None:
    found = json.loads((made / "tune" / "w" / "both" / "0.json").read_text())
    assert (found["use"], found["tuned"], found["trials"]) == ("given", None, [])
    assert found["alternatives"]["ds_u"]["weights"] == {"ds_u": 1.0, "ds_b": 0.0}


def test_the_search_never_beats_the_exact_optimum_and_the_rule_decides(made: Path) -> None:
    for fold in ("0", "1"):
        found = json.loads((made / "tune" / "w" / "searched" / f"{fold}.json").read_text())
        assert found["exact"]["gap"] >= -1e-7
        assert found["tuned"]["log_loss"] <= found["given"]["log_loss"] + 1e-12
        assert found["given"]["weights"] == {"ds_b": 0.25, "ds_u": 0.75}
        better = found["gain"]["lo"] > 0
        assert found["use"] == ("tuned" if better else "given")
        assert found["used"] == found[found["use"]]["weights"]
        first = found["trials"][0]["values"]
        assert first["ds_b"] / first["ds_u"] == pytest.approx(1 / 3)  # the stated weights are tried first


def test_tuned_weights_are_used_where_they_are_better_beyond_doubt(made: Path, tmp_path: Path) -> None:
    """One member is turned round: no weight but 0 for it is good on any patients."""
    out, params = tmp_path / "out", _params()
    shutil.copytree(made / "predictions", out / "predictions")
    file = out / "predictions" / "ds_b" / "0" / "tune.parquet"
    table = pd.read_parquet(file)
    table[["p_cap", "p_covid19"]] = table[["p_covid19", "p_cap"]].to_numpy()
    table.to_parquet(file)
    mean_ensemble.tune_shares("searched", 0, params, out, tmp_path)
    found = json.loads((out / "tune" / "w" / "searched" / "0.json").read_text())
    assert found["use"] == "tuned"
    assert found["used"]["ds_b"] < 0.1
    mean_ensemble.tune_shares("both", 0, params, out, tmp_path)
    assert json.loads((out / "tune" / "w" / "both" / "0.json").read_text())["used"] == {"ds_u": 0.5, "ds_b": 0.5}


def test_members_figures_stand_beside_the_means(made: Path) -> None:
    for name in MEANS:
        found = _evidence(made, name)
        members = found["members"]
        alone = _evidence(made, "ds_u")["metrics"]["image"]
        assert members["runs"]["ds_u"]["auroc"] == alone["auroc"]
        assert set(members["runs"]) == {"ds_u", "ds_b"}
        assert ("tuned" in members, "tuned_minus_given" in members) == (name == "searched", name == "searched")
        if set(members["used"].values()) == {"given"}:
            assert members["given"]["auroc"]["value"] == pytest.approx(found["metrics"]["image"]["auroc"]["value"])
        assert found["kind"] == "ensemble"
        assert np.isclose(sum(members["weights"]["0"].values()), 1)


def test_the_mean_map_is_measured_and_shown(made: Path) -> None:
    found = _evidence(made, "both")["localisation"]
    assert (found["available"], found["run"]) == (True, "both")
    page = report_methods.about("both", _params(), made)
    assert page["about"].startswith("Mean of ds_u, ds_b.")
    assert page["attention_note"] == "Maps are the mean of its members'."
    table = page["tables"][0]
    assert [row[0] for row in table.rows] == ["ds_u alone", "ds_b alone", "mean with the stated weights"]
    assert "fold 0: given (ds_u 0.50, ds_b 0.50)" in table.note
    assert {row[0] for row in page["deviations"].rows} <= {"ds_u", "ds_b"}


def test_coarser_maps_are_brought_to_the_finest(tmp_path: Path) -> None:
    params = _params(folds=1)
    rng = np.random.default_rng(0)
    maps = {"ds_u": rng.random((2, 4, 4, 4)), "ds_b": np.full((2, 2, 2, 2), 0.25)}
    for run, order in (("ds_u", ["b", "a"]), ("ds_b", ["a", "b"])):
        folder = tmp_path / "predictions" / run / "0"
        folder.mkdir(parents=True)
        np.save(folder / "attention.npy", maps[run].astype(np.float16))
        pd.DataFrame({"image_id": order}).to_parquet(folder / "test.parquet")
    found = mean_ensemble.mean_map("both", 0, params, tmp_path, {"ds_u": 0.75, "ds_b": 0.25})
    np.testing.assert_allclose(found, 0.75 * maps["ds_u"][::-1] + 0.0625, atol=2e-3)
    alone = mean_ensemble.mean_map("both", 0, params, tmp_path, {"ds_u": 0.0, "ds_b": 1.0})
    assert alone.shape == (2, 2, 2, 2)
    (tmp_path / "predictions" / "ds_b" / "0" / "attention.npy").unlink()
    np.testing.assert_allclose(
        mean_ensemble.mean_map("both", 0, params, tmp_path, {"ds_u": 0.5, "ds_b": 0.5}), maps["ds_u"][::-1], atol=1e-3
    )
    assert mean_ensemble.mean_map("both", 0, params, tmp_path, {"ds_u": 0.0, "ds_b": 1.0}) is None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"size": [224, 224]}, {"size": [299, 320]}, True),
        ({"size": [224, 224], "keep_aspect": True}, {"size": [299, 299], "keep_aspect": True}, True),
        ({"size": [224, 224], "keep_aspect": True}, {"size": [299, 320], "keep_aspect": True}, False),
        ({"size": [224, 224], "keep_aspect": True}, {"size": [224, 224]}, False),
    ],
)
def test_maps_are_averaged_where_recipes_frame_pictures_alike(first: dict, second: dict, same: bool) -> None:
    from chestflow.config import Recipe

    a, b = (Recipe(modality="cxr", **values) for values in (first, second))
    assert mean_ensemble.same_frame(a, b) is mean_ensemble.same_frame(b, a) is same


def test_members_must_agree_on_their_images(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made / "predictions", out / "predictions")
    file = out / "predictions" / "ds_b" / "0" / "tune.parquet"
    pd.read_parquet(file).iloc[1:].to_parquet(file)
    with pytest.raises(DataError, match="ds_b and ds_u predict different images or classes, fold 0"):
        mean_ensemble.tune_shares("both", 0, _params(), out, tmp_path)
