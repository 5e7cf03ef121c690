"""Volumes without lungs leave training, are counted, and are refused when a model is asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from chestflow.data.packs import Pack
from chestflow.errors import DataError
from chestflow.files import read_json
from chestflow.methods import registry
from chestflow.training.lungless import without_lungless
from chestflow.training.run import train_run
from tests import toy

SHAPE = (6, 8, 8)


def pack_without(rows: list[int], shape: tuple[int, ...] = SHAPE) -> Pack:
    pack, _ = toy.make_pack(10, shape)
    pack.index.loc[rows, "has_lung"] = False
    return pack


def roles() -> dict[str, pd.DataFrame]:
    each = {"train": [4, 0, 1, 2], "tune": [5, 3], "test": [6, 7], "external": [8]}
    return {role: pd.DataFrame({"image_id": [f"toy-{i}" for i in rows], "row": rows}) for role, rows in each.items()}


def test_they_leave_training_and_stay_where_they_are_only_asked_about() -> None:
    kept, counts = without_lungless(roles(), pack_without([0, 2, 3, 6, 8]))
    assert {role: table["row"].tolist() for role, table in kept.items()} == {
        "train": [4, 1], "tune": [5], "test": [6, 7], "external": [8]
    }  # fmt: skip
    assert kept["train"].index.tolist() == [0, 1]
    assert counts == {"train": 2, "tune": 1}


@pytest.mark.parametrize("case", ["pictures", "no lungs anywhere", "lungs everywhere"])
def test_nothing_leaves_otherwise(case: str) -> None:
    pack = {
        "pictures": pack_without([0, 2], (12, 12)),
        "no lungs anywhere": pack_without(list(range(10))),
        "lungs everywhere": pack_without([]),
    }[case]
    kept, counts = without_lungless(roles(), pack)
    assert all(kept[role].equals(table) for role, table in roles().items())
    assert counts == {"train": 0, "tune": 0}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy.write_workspace(tmp_path / "out", SHAPE)
    known = registry.get
    monkeypatch.setattr(registry, "get", lambda name: toy.METHOD if name == "toy" else known(name))
    return tmp_path


def mark(root: Path, rows: list[int]) -> None:
    index = pd.read_parquet(root / "out" / "packs" / "toy" / "index.parquet")
    index.loc[rows, "has_lung"] = False
    index.to_parquet(root / "out" / "packs" / "toy" / "index.parquet")


def train(root: Path) -> dict:
    params: SimpleNamespace = toy.params({"epochs": 1, "phases": 1})
    return train_run(params, "toy_run", 0, root / "out", root / ".checkpoints")


def test_a_run_says_and_records_how_many(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark(workspace, [1, 2, 21, 29])
    train(workspace)
    said = [line for line in capsys.readouterr().err.splitlines() if "no lungs" in line]
    assert said == [
        "runs.toy_run, fold 0: 2 volumes leave role train, no lungs were found in them",
        "runs.toy_run, fold 0: 1 volumes leave role tune, no lungs were found in them",
    ]
    trained, predicted = (workspace / "out" / part / "toy_run" / "0" for part in ("train", "predictions"))
    assert read_json(trained / "model.json")["left_out_without_lungs"] == {"train": 2, "tune": 1}
    tune, test = (pd.read_parquet(predicted / f"{role}.parquet") for role in ("tune", "test"))
    assert "toy-0021" not in set(tune["image_id"])
    assert len(tune) == 7
    assert "toy-0029" in set(test["image_id"])


def test_a_class_that_is_gone_with_them_is_said(workspace: Path) -> None:
    mark(workspace, list(np.flatnonzero(np.arange(20) % 2 == 1)))  # COVID-19 of the train role
    with pytest.raises(DataError, match="role train has no image of covid19"):
        train(workspace)
