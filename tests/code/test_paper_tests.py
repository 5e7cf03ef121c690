"""The paired t-test over folds, paper 004's tables as printed, and its significance tests beside ours."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from chestflow.config import parse
from chestflow.errors import DataError
from chestflow.evaluation.comparison import compare, paired_t
from chestflow.evaluation.paper_tests import paper_tests
from chestflow.evaluation.report_ensembles import weights
from chestflow.evaluation.reproduction import implied, matches, paper_figures
from chestflow.files import write_json, write_parquet
from tests.code import study_outs

TABLE = paper_figures()["dual_sampling"]
DS = ("RN34+US", "Attention RN34+US", "Attention RN34+SS", "Attention RN34+DS")


def test_the_t_test_is_scipys() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.9, 0.02, 5), rng.normal(0.88, 0.02, 5)
    found, known = paired_t(first, second), ttest_rel(first, second)
    assert found["p"] == pytest.approx(known.pvalue)
    assert found["t"] == pytest.approx(known.statistic)
    assert found["difference"] == pytest.approx((first - second).mean())
    assert paired_t(second, first)["p"] == pytest.approx(found["p"])


@pytest.mark.parametrize(
    ("first", "second", "p", "folds"),
    [
        ([0.9], [0.8], math.nan, 1),
        ([], [], math.nan, 0),
        ([0.9, math.nan], [0.8, 0.8], math.nan, 1),
        ([0.9, 0.8], [0.9, 0.8], 1.0, 2),
        ([0.75, 0.5], [0.5, 0.25], 0.0, 2),
    ],
)
def test_the_t_test_at_its_edges(first: list[float], second: list[float], p: float, folds: int) -> None:
    found = paired_t(first, second)
    assert found["folds"] == folds
    assert found["p"] == pytest.approx(p, nan_ok=True)


def test_table_two_and_three_are_whole() -> None:
    columns = set(TABLE["columns"])
    for label in DS:
        row = TABLE["rows"][label]
        assert set(row["tv"]) == set(row["test"]) == set(row["sd"]["test"]) == columns
        for part in (row["groups"]["tv"], row["groups"]["test"], row["groups_sd"]["test"]):
            assert {name: len(values) for name, values in part.items()} == dict.fromkeys(columns, 3)


@pytest.mark.parametrize("which", ["tv", "test"])
@pytest.mark.parametrize("label", DS)
def test_printed_groups_make_the_printed_whole(label: str, which: str) -> None:
    """Sensitivity, specificity and accuracy of all images are the groups' weighted by their sizes."""
    row, sizes = TABLE["rows"][label], TABLE["group_sizes"][which]
    ill, cap = np.array(sizes["covid19"]), np.array(sizes["cap"])
    groups = {name: np.array(values) for name, values in row["groups"][which].items()}
    assert (groups["sen"] @ ill) / ill.sum() == pytest.approx(row[which]["sen"], abs=0.0012)
    assert (groups["spe"] @ cap) / cap.sum() == pytest.approx(row[which]["spe"], abs=0.0012)
    assert (groups["acc"] @ (ill + cap)) / (ill + cap).sum() == pytest.approx(row[which]["acc"], abs=0.0012)


@pytest.mark.parametrize("which", ["tv", "test"])
@pytest.mark.parametrize("label", DS)
def test_f1_is_the_mean_of_both_classes(label: str, which: str) -> None:
    printed, sizes = TABLE["rows"][label][which], TABLE["group_sizes"][which]
    found = implied(printed["sen"], printed["spe"], sum(sizes["covid19"]), sum(sizes["cap"]))
    macro = (found["implied_f1"] + found["implied_f1_negative"]) / 2
    assert macro == pytest.approx(printed["f1"], abs=0.0015)
    assert found["implied_f1"] - macro > 0.05 or which == "tv"  # so it is not that of COVID-19


@pytest.mark.parametrize("which", ["tv", "test"])
def test_the_ratios_row_follows_from_the_group_sizes(which: str) -> None:
    sizes = TABLE["group_sizes"][which]
    ill, cap = sizes["covid19"], sizes["cap"]
    row = TABLE["rows"]["COVID-19 if the ratio is 0.005 or more"][which]
    sen, spe = sum(ill[1:]) / sum(ill), cap[0] / sum(cap)
    auc = sum(a * b * (1.0 if i > j else 0.5 if i == j else 0.0) for i, a in enumerate(ill) for j, b in enumerate(cap))
    found = implied(sen, spe, sum(ill), sum(cap))
    macro = (found["implied_f1"] + found["implied_f1_negative"]) / 2
    expected = {"auc": auc / sum(ill) / sum(cap), "acc": found["implied_acc"], "sen": sen, "spe": spe, "f1": macro}
    assert row == pytest.approx(expected, abs=0.0006)


def test_only_the_stated_weights_are_the_papers_ensemble() -> None:
    both = {
        "ds": {"uniform": "ds_u", "balanced": "ds_b"},
        "swapped": {"uniform": "ds_u", "balanced": "ds_b", "w_extreme": 0.96, "w_middle": 0.35},
    }
    params = study_outs.params(ensembles=both)
    match = TABLE["rows"]["Attention RN34+DS"]["match"]
    assert matches(match, "dual_sampling", "ds", params)
    assert not matches(match, "dual_sampling", "swapped", params)
    assert not matches(match, "dual_sampling", "ds_u", params)


def write(out: Path, shift: float) -> None:
    """Cases of two runs on 200 volumes in two folds, the second one's scores better by ``shift``."""
    rng = np.random.default_rng(1)
    n = 200
    target = np.arange(n) % 2
    ratio = np.where(np.arange(n) // 2 % 2, 0.001, 0.05)
    noise = rng.normal(0, 1, n)
    for name, more in (("plain", 0.0), ("even", shift)):
        z = (0.5 + more) * (2 * target - 1) + noise
        p = 1 / (1 + np.exp(-z))
        cases = pd.DataFrame(
            {
                "fold": np.arange(n) // 100, "image_id": [f"i{i:03d}" for i in range(n)], "task": "covid_vs_cap",
                "patient_id": [f"p{i:03d}" for i in range(n)], "target": target, "ratio": ratio, "p_cap": 1 - p,
                "p_covid19": p, "called": (p > 0.5).astype(int),
            }
        )  # fmt: skip
        write_parquet(out / "evaluate" / name / "cases.parquet", cases)
        folds = [{"fold": f, "metrics": {"auroc": 0.7 + more / 10 + f / 100}} for f in range(2)]
        write_json(out / "evaluate" / f"{name}.json", {"per_fold": folds})


def two_runs() -> dict:
    return {
        name: {
            "method": "dual_sampling", "task": "covid_vs_cap", "recipe": "small",
            "config": {"sampling": "uniform", "attention": attention},
        }
        for name, attention in (("plain", False), ("even", True))
    }  # fmt: skip


def test_the_papers_tests_stand_beside_ours(tmp_path: Path) -> None:
    write(tmp_path, 0.5)
    params = study_outs.params(runs=two_runs(), ensembles={})
    (found,) = paper_tests(params, tmp_path)  # the other stated tests need size-balanced sampling
    assert (found["first"], found["second"], found["ours"]) == ("Attention RN34+US", "RN34+US", ("even", "plain"))
    assert (found["stated"], found["group"], found["images"], found["folds"]) == ("below 0.01", None, 200, 2)
    assert found["difference"]["value"] > 0.05
    assert found["delong_p"] < 0.01


def test_a_test_in_groups_is_made_in_them_and_only_at_the_papers_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 0.5)
    stated = [{"first": "Attention RN34+US", "second": "RN34+US", "p": "below 0.01", "groups": [0, 2]}]
    monkeypatch.setitem(TABLE, "tests", stated)
    params = study_outs.params(runs=two_runs(), ensembles={})
    assert [(row["group"], row["images"]) for row in paper_tests(params, tmp_path)] == [
        ("below 0.005", 100),
        ("from 0.03", 100),
    ]
    other = {**params.model_dump(by_alias=True), "evaluate": {"ratio_cuts": [0.01, 0.03]}}
    assert paper_tests(parse(other), tmp_path) == []


def test_the_t_test_has_to_be_asked_for_by_name(tmp_path: Path) -> None:
    write(tmp_path, 0.5)
    names = ["even", "plain"]
    assert "paired_t_p" not in compare(names, tmp_path, resamples=50)
    row = compare(names, tmp_path, resamples=50, tests=("delong", "paired_t")).iloc[0]
    assert row["paired_t"] == pytest.approx(0.05)
    assert (row["paired_t_p"], row["paired_t_folds"]) == (pytest.approx(0.0, abs=1e-9), 2)
    with pytest.raises(DataError, match="no test is called 'anova': name some of delong, mcnemar, paired_t"):
        compare(names, tmp_path, tests=("anova",))


def test_the_swap_of_w_stands_between_stated_and_tuned(tmp_path: Path) -> None:
    params = study_outs.params(folds=1)
    figures = {"cut_low": 0.001, "cut_high": 0.03, "log_loss": 0.4, "auroc": 0.9, "accuracy": 0.8}
    written = {
        "use": "paper", "gain": {"value": 0.01, "lo": -0.02, "hi": 0.03},
        "paper": {"w_extreme": 0.35, "w_middle": 0.96, **figures},
        "swapped": {"w_extreme": 0.96, "w_middle": 0.35, **figures},
        "tuned": {"w_extreme": 0.5, "w_middle": 0.6, **figures},
    }  # fmt: skip
    write_json(tmp_path / "tune/w/ds/0.json", written)
    table = weights("ds", params, tmp_path)
    assert table is not None
    assert [row[1:4] for row in table.rows] == [
        ["stated", 0.35, 0.96],
        ["stated, exchanged", 0.96, 0.35],
        ["tuned", 0.5, 0.6],
    ]
    assert [row[-1] for row in table.rows] == ["yes", "", ""]
    assert "+0.0100 [-0.0200, +0.0300]" in table.note
    assert weights("ds_u", params, tmp_path) is None
