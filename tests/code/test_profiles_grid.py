"""The ablation grid of paper 002: every cell is there, at the paper's settings, and every network fits its input."""

from itertools import product
from pathlib import Path

import pytest

from chestflow import dag, profiles
from chestflow.config import parse
from chestflow.methods import registry

CELLS = set(product("ABCD", ("resnet18", "resnet50"), (None, "imagenet")))
OTHERS = {("D", "squeezenet1_1", "imagenet"), ("D", "densenet121", "imagenet")}


@pytest.fixture(scope="module")
def grid(repository: Path) -> dict:
    return profiles.complete(profiles.read("covidnet_grid", repository / "profiles"), "profiles/covidnet_grid.yaml")


def test_every_cell_is_one_run(grid: dict) -> None:
    cells = [
        (run["config"]["setting"], run["config"]["backbone"], run["config"]["weights"]) for run in grid["runs"].values()
    ]
    assert len(cells) == 18
    assert set(cells) == CELLS | OTHERS


def test_cells_differ_in_nothing_else_and_train_as_the_paper_says(grid: dict) -> None:
    varied = {"setting", "backbone", "weights"}
    rest = [{k: v for k, v in run["config"].items() if k not in varied} for run in grid["runs"].values()]
    assert all(one == rest[0] for one in rest)
    stated = {"optimiser": "sgd", "lr": 1e-4, "momentum": 0.9, "batch_size": 48, "epochs": 50, "schedule": "none"}
    assert {key: rest[0][key] for key in stated} == stated
    assert {(run["method"], run["task"], run["recipe"]) for run in grid["runs"].values()} == {
        ("covidnet", "covid_vs_rest", "cxr_224")
    }
    assert grid["recipes"]["cxr_224"]["size"] == [224, 224]


def test_only_what_the_paper_varies_deviates_from_it(grid: dict) -> None:
    method = registry.get("covidnet")
    for name, run in grid["runs"].items():
        deviating = {row["name"] for row in registry.deviations(method, run["config"])}
        assert deviating <= {"weights", "cg_on", "setting", "backbone"}, name


def test_names_say_the_cell(grid: dict) -> None:
    short = {"resnet18": "r18", "resnet50": "r50"}
    for name, run in grid["runs"].items():
        config = run["config"]
        if config["backbone"] in short:
            start = "scratch" if config["weights"] is None else config["weights"]
            assert name == f"{short[config['backbone']]}_{start}_{config['setting'].lower()}"
        else:
            assert name in ("squeezenet_d", "densenet121_d")


def test_every_network_fits_and_every_fold_is_in_the_tables(grid: dict) -> None:
    params = parse(grid, "profiles/covidnet_grid.yaml")
    profiles.check(params)
    assert len(dag.tables(params)["train"]) == 18 * 5
