"""Paper 003's printed tables: all of their rows, what their values can be, and which of our runs stand beside them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from chestflow.config import Params, parse
from chestflow.evaluation.reproduction import matches, paper_figures
from chestflow.evaluation.run_facts import extractor, facts, start
from chestflow.methods import registry

KEY = "multi_knowledge"
TABLE = paper_figures()[KEY]
ROWS = TABLE["rows"]


def params(runs: dict[str, dict[str, Any]], semi: bool = False, folds: int = 1) -> Params:
    completed = {
        name: {
            "task": "slices", "recipe": "small", **run,
            "config": registry.completed(registry.get(run["method"]), run.get("config", {})),
        }
        for name, run in runs.items()
    }  # fmt: skip
    return parse({
        "profile": "tiny", "data": {"sets": ["covid_ct"]}, "split": {"k": max(2, folds)}, "folds": list(range(folds)),
        "cohorts": {"ct": {"sets": ["covid_ct"], "modality": "ct_slice", "official_test": folds == 1}},
        "recipes": {"small": {"modality": "ct_slice", "size": [224, 224]}},
        "tasks": {"slices": {"cohort": "ct", "classes": {"non_covid": ["non_covid"], "covid19": ["covid19"]}}},
        "infection": {"ct_slice": {"sets": ["covid_ct"], "pseudo": {"sets": ["covid_ct"] if semi else []}}},
        "pretraining": {"moco": {"cohort": "ct", "recipe": "small"}},
        "runs": completed,
    })  # fmt: skip


def beside(name: str, made: Params) -> list[str]:
    return [label for label, row in ROWS.items() if matches(row["match"], KEY, name, made)]


def test_every_row_of_the_tables_is_there() -> None:
    nets = [f"{net} {branch}" for net in ("ResNet50", "DenseNet169")
            for branch in ("global", "+ infected", "+ heat map", "+ fusion")]  # fmt: skip
    for weights in ("ImageNet", "Self-Trans"):
        assert {f"{net} ({weights})" for net in nets} <= set(ROWS)
    assert sum("Saeedi" in row or "Mobiny" in row for row in ROWS) == 9
    assert sum(row.startswith("G") for row in ROWS) == 9
    assert len(ROWS) == 16 + 9 + 9


def test_the_appendix_last_line_is_the_mean_of_table_2() -> None:
    for branch in ("infected", "heat map", "fusion"):
        of = [ROWS[f"{net} + {branch} (Self-Trans)"]["test"]["acc"] for net in ("ResNet50", "DenseNet169")]
        assert ROWS[f"G-H-I-F, {branch}"]["test"]["mean_acc"] == pytest.approx(sum(of) / 2, abs=6e-4)


def test_few_accuracies_are_shares_of_203_slices() -> None:
    printed = [row["test"]["acc"] for label, row in ROWS.items() if label.endswith(("(ImageNet)", "(Self-Trans)"))]
    shares = {round(k / 203, 3) for k in range(204)}
    assert sum(value in shares for value in printed) == 3
    assert "3 of the 16" in TABLE["columns"]["acc"]["means"]
    assert "unstated class" in TABLE["columns"]["f1"]["means"]


def test_every_match_names_what_exists() -> None:
    made = params({"one": {"method": KEY}})
    known = set(facts("one", made))
    for label, row in ROWS.items():
        for match in row["match"] if isinstance(row["match"], list) else [row["match"]]:
            config = {f.name for f in dataclasses.fields(registry.get(match.get("method", KEY)).config)}
            assert set(match) - {"method"} <= config | known, label


def test_runs_stand_beside_their_rows() -> None:
    made = params({
        "scratch": {"method": KEY},
        "imagenet": {"method": KEY, "config": {"weights": "imagenet", "answers": "heat"}},
        "moco": {"method": KEY, "uses": {"weights": "moco"}},
        "joint": {"method": KEY, "uses": {"weights": "moco"}, "config": {"strategy": "GHIF", "backbone": "resnet50"}},
        "plain": {"method": "baselines", "config": {"network": "resnet50", "weights": "imagenet"}},
        "fused": {"method": KEY, "uses": {"global": "plain"},
                  "config": {"global_branch": "run", "backbone": "resnet50"}},
        "wider": {"method": KEY, "uses": {"global": "plain"}, "config": {"global_branch": "run"}},
    })  # fmt: skip
    assert {name: start(name, made) for name in made.runs} == {
        "scratch": "scratch", "imagenet": "imagenet", "moco": "self_trans", "joint": "self_trans", "plain": "imagenet",
        "fused": "imagenet", "wider": "imagenet",
    }  # fmt: skip
    assert beside("scratch", made) == []
    assert beside("imagenet", made) == ["DenseNet169 + heat map (ImageNet)"]
    assert beside("moco", made) == ["DenseNet169 + fusion (Self-Trans)", "G-H-I-F, fusion"]
    assert beside("joint", made) == ["GHIF, fusion"]
    assert beside("plain", made) == ["ResNet50 global (ImageNet)"]
    assert beside("fused", made) == ["ResNet50 + fusion (ImageNet)"]
    assert extractor("wider", made) == "baselines"  # another backbone than its own branches'
    assert beside("wider", made) == []


@pytest.mark.parametrize("semi", [False, True])
def test_fusions_over_other_works_features(semi: bool) -> None:
    made = params(
        {
            "svm": {"method": "saeedi"},
            "caps": {"method": "decaps", "config": {"peekaboo": False}},
            "twice": {"method": "decaps"},
            **{
                f"with_{name}": {"method": KEY, "uses": {"global": name}, "config": {"global_branch": "run"}}
                for name in ("svm", "caps", "twice")
            },
        },
        semi,
        folds=10,
    )
    assert [beside(name, made) for name in ("svm", "caps", "twice")] == [
        ["Saeedi et al."], ["Mobiny et al. (1)"], ["Mobiny et al. (2)"]
    ]  # fmt: skip
    how = "full fusion" if semi else "fusion, no Semi-S"
    for name, label in (("svm", "Saeedi et al."), ("caps", "Mobiny et al. (1)"), ("twice", "Mobiny et al. (2)")):
        assert beside(f"with_{name}", made) == [f"{label} + {how}"]


def test_another_backbone_or_fewer_folds_is_no_row_of_table_3() -> None:
    runs = {
        "svm": {"method": "saeedi"},
        "small_svm": {"method": "saeedi", "config": {"backbone": "resnet18"}},
        "caps": {"method": "decaps"},
        "small_caps": {"method": "decaps", "config": {"backbone": "resnet18"}},
        **{
            f"with_{name}": {"method": KEY, "uses": {"global": name}, "config": {"global_branch": "run"}}
            for name in ("svm", "small_svm", "caps", "small_caps")
        },
    }
    ten, one = params(runs, folds=10), params(runs)
    for prefix in ("", "with_"):
        assert beside(f"{prefix}small_svm", ten) == beside(f"{prefix}small_caps", ten) == []
        assert beside(f"{prefix}svm", one) == []
        assert len(beside(f"{prefix}svm", ten)) == len(beside(f"{prefix}caps", one)) == 1
    assert [facts("with_svm", made)["test_folds"] for made in (one, ten)] == [1, 10]
    assert facts("with_small_caps", one)["extractor_backbone"] == "resnet18"
