"""The papers' printed tables: what their numbers can and cannot mean, and which of our entries stand beside them."""

from __future__ import annotations

from typing import Any

import pytest

from chestflow.config import Params, parse
from chestflow.evaluation.intervals import wilson
from chestflow.evaluation.reproduction import UNPRINTED, implied, matches, paper_figures, rows, untrained
from chestflow.methods import registry

CLASSES = {"normal": ["normal"], "pneumonia": ["pneumonia"], "covid19": ["covid19"]}


def params(runs: dict[str, dict[str, Any]], *, cohort: str = "set_a", clahe: bool = True, **more: Any) -> Params:
    """Runs of three classes on one X-ray cohort, their configs completed."""
    recipe = {"modality": "cxr", "size": [96, 96], "clahe": {"clip": 4.0, "tiles": 4} if clahe else None}
    completed = {
        name: {
            "method": run["method"], "task": "three", "recipe": "small",
            "config": registry.completed(registry.get(run["method"]), run.get("config", {})),
        }
        for name, run in runs.items()
    }  # fmt: skip
    return parse({
        "profile": "tiny", "data": {"sets": ["darkcovid"]},
        "cohorts": {cohort: {"sets": ["darkcovid"], "modality": "cxr"}}, "recipes": {"small": recipe},
        "tasks": {"three": {"cohort": cohort, "classes": CLASSES}}, "runs": completed, **more,
    })  # fmt: skip


def evaluation(method: str, task: str = "three", classes: tuple[str, ...] = tuple(CLASSES)) -> dict[str, Any]:
    """The parts of an evidence file that a reproduction table reads, with a different value everywhere."""
    names = (
        "accuracy", "balanced_accuracy", "macro_npv", "macro_f1", "macro_auroc", "auroc", "sensitivity", "specificity",
        "precision", "f1", "f1_negative",
    )  # fmt: skip
    whole = {name: {"value": 0.5 + i / 100, "lo": 0.4, "hi": 0.6} for i, name in enumerate(names)}
    of = {c: {"sensitivity": {"value": 0.1 * i, "lo": 0.0, "hi": 1.0}} for i, c in enumerate(classes, 1)}
    return {
        "method": method, "task": task, "classes": list(classes), "ratio_groups": [],
        "counts": {"sources": ["darkcovid"], "image": dict.fromkeys(classes, 10)},
        "metrics": {"image": whole}, "per_class": {"image": of},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "percent"),
    [
        ("B3", 92.79),
        ("C3", 95.80),
        ("D3", 97.88),
        ("D4", 99.57),
        ("C4", 97.54),
        ("A3", 96.96),
        ("A4", 91.99),
        ("B4", 97.84),
    ],
)
def test_paper_002s_f1_is_that_of_the_other_class(row: str, percent: float) -> None:
    printed = paper_figures()["covidnet"]["rows"][row]
    found = implied(printed["sens"], printed["spec"], 100, 3000)["implied_f1_negative"]
    assert 100 * found == pytest.approx(percent, abs=0.011)
    assert found == pytest.approx(printed["f1"], abs=0.0085)


@pytest.mark.parametrize(
    ("row", "accuracy"),
    [("A3", 94.3), ("B3", 87.0), ("C3", 92.2), ("D3", 96.0), ("A4", 85.6), ("B4", 95.9), ("C4", 95.4), ("D4", 99.2)],
)
def test_paper_002s_accuracies_as_implied(row: str, accuracy: float) -> None:
    printed = paper_figures()["covidnet"]["rows"][row]
    found = implied(printed["sens"], printed["spec"], 100, 3000)["implied_acc"]
    assert 100 * found == pytest.approx(accuracy, abs=0.06)
    assert (found > 3000 / 3100) == (row == "D4")  # the rest lose against "never COVID-19"


def test_paper_000s_winners_cannot_be_told_apart() -> None:
    """Wilson's intervals of 193, 190 and 188 of 200 overlap."""
    table = paper_figures()["ac_covidnet"]
    ends = {}
    for row in ("AC-CovidNet", "CovidNet + contrastive", "COVID-Net"):
        found = wilson(round(table["rows"][row]["v3"]["covid"] * 200), 200)
        ends[row] = (round(100 * found.lo, 1), round(100 * found.hi, 1))
    assert ends == {
        "AC-CovidNet": (93.0, 98.3), "CovidNet + contrastive": (91.0, 97.3), "COVID-Net": (89.8, 96.5)
    }  # fmt: skip


def test_paper_000s_shares_are_whole_images_but_for_six_cells() -> None:
    table = paper_figures()["ac_covidnet"]
    broken = {
        (label, which, column)
        for label, row in table["rows"].items()
        for which, about in table["sets"].items()
        for column, share in row[which].items()
        if abs(share * about["trials"] - round(share * about["trials"])) > 0.011
    }
    assert {which for _, which, _ in broken} == {"v2"}
    assert {(label, column) for label, _, column in broken} == {
        ("CovidAID", "covid"), ("CovidCTNet", "covid"), ("CovidCTNet", "pneumonia"), ("CovidCTNet", "normal"),
        ("Covid-CT (self-trans)", "covid"), ("Covid-CT (self-trans)", "normal"),
    }  # fmt: skip


def test_paper_001s_spc_is_no_specificity() -> None:
    """With two classes the mean specificity is the mean sensitivity; the printed columns differ."""
    rows_of = paper_figures()["mag_sd"]["rows"]
    full = [row["A"] for row in rows_of.values() if "sen" in row["A"]]
    assert len(full) == 13
    assert all(row["sen"] != row["spc"] for row in full)


def test_each_printed_figure_has_a_column_and_each_metric_exists() -> None:
    for table in paper_figures().values():
        sets = table.get("sets") or {}
        for row in table["rows"].values():
            assert ("match" in row) != ("not_trained" in row)
            for which in sets:
                assert set(row.get(which, {})) <= set(table["columns"])


def test_a_run_stands_beside_its_row_of_every_paper() -> None:
    found = params({"plain": {"method": "ac_covidnet", "config": {"gates": False, "contrastive": False}}})
    table = rows("plain", found, evaluation("ac_covidnet"))
    assert {row["row"] for row in table} == {"COVID-Net"}
    assert {row["set"] for row in table} == {"v1", "v2", "v3"}
    pneumonia = next(r for r in table if r["set"] == "v2" and r["column"] == "pneumonia")
    assert pneumonia["ours"]["value"] == pytest.approx(0.2)
    assert pneumonia["ours"]["method"] == "wilson"
    assert pneumonia["ours"]["lo"] == pytest.approx(0.0567, abs=1e-3)  # 2 of 10
    assert pneumonia["paper_lo"] < pneumonia["paper_value"] < pneumonia["paper_hi"]
    assert pneumonia["difference"] == pytest.approx(0.2 - 0.8733)


def test_the_papers_own_cohort_leaves_the_other_parts_out() -> None:
    found = params({"full": {"method": "ac_covidnet"}}, cohort="covidx_v2")
    table = rows("full", found, evaluation("ac_covidnet"))
    assert {(row["row"], row["set"]) for row in table} == {("AC-CovidNet", "v2")}


def test_a_set_of_other_classes_is_not_compared() -> None:
    found = params({"mag": {"method": "mag_sd"}})
    table = rows("mag", found, evaluation("mag_sd"))
    assert {(row["row"], row["set"]) for row in table} == {("MAG-SD", "B")}
    spc = next(row for row in table if row["column"] == "spc")
    assert spc["metric"] == "macro_npv"


def test_without_clahe_it_is_the_ablations_row() -> None:
    found = params({"mag": {"method": "mag_sd"}}, clahe=False)
    assert {row["row"] for row in rows("mag", found, evaluation("mag_sd"))} == {"no CLAHE"}


def test_what_is_not_trained_is_listed_with_its_figures_and_reason() -> None:
    found = params({"full": {"method": "ac_covidnet"}})
    missing = {row["row"]: row for row in untrained(found)}
    assert "AC-CovidNet" not in missing
    assert missing["CovidCTNet"]["figures"]["v1"] == {"covid": 0.83, "pneumonia": 0.76, "normal": 0.89}
    assert "3D" in missing["CovidCTNet"]["reason"]
    assert len(missing) == 10
    assert {row["paper"] for row in missing.values()} == {"000 AC-CovidNet"}


def test_an_unknown_key_is_no_match() -> None:
    found = params({"full": {"method": "ac_covidnet"}})
    assert not matches({"method": "ac_covidnet", "no_such_key": 1}, "ac_covidnet", "full", found)
    assert not matches(None, "ac_covidnet", "full", found)
    assert not matches({"networks": ["resnet18"]}, "ac_covidnet", "full", found)


def test_comparators_alone_still_list_what_was_not_trained() -> None:
    found = params({"dark": {"method": "darkcovidnet"}})
    assert "CovidCTNet" in {row["row"] for row in untrained(found)}


def test_a_task_of_two_classes_is_not_paper_000s() -> None:
    found = params({"full": {"method": "ac_covidnet"}})
    table = rows("full", found, evaluation("ac_covidnet", classes=("rest", "covid19")))
    assert [(row["row"], row["column"], row["paper_value"], row["difference"]) for row in table] == [
        (UNPRINTED, "covid", None, None)
    ]


def test_a_papers_method_at_other_settings_stands_there_without_the_papers_values() -> None:
    found = params({"other": {"method": "covidnet", "config": {"backbone": "resnet34"}}})
    table = rows("other", found, evaluation("covidnet"))
    assert {row["row"] for row in table} == {UNPRINTED}
    assert {row["paper_value"] for row in table} == {None}
    assert all(row["ours"]["value"] is not None for row in table)
    assert {row["paper"] for row in untrained(found)} == {row["paper"] for row in table}


def test_covid_net_stands_beside_two_papers() -> None:
    found = params({"large": {"method": "covid_net"}})
    table = rows("large", found, evaluation("covid_net"))
    assert {row["row"] for row in table} == {"COVID-Net", "COVID-Net (Large)"}


def test_a_frozen_network_is_not_the_fine_tuned_one() -> None:
    free = {"method": "baselines", "config": {"network": "resnet18"}}
    frozen = {"method": "baselines", "config": {"network": "resnet18", "freeze_backbone": True}}
    found = params({"free": free, "frozen": frozen})
    assert {row["row"] for row in rows("free", found, evaluation("baselines"))} == {"ResNet18"}
    assert not rows("frozen", found, evaluation("baselines"))
