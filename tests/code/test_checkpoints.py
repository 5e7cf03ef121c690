"""Checkpoints: whole or not there, never silently wrong; and the key they are kept under."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from chestflow.files import read_json
from chestflow.training import checkpoints
from chestflow.training.identity import checkpoint_folder
from tests import toy

STATE = {"network": {"w": torch.arange(4.0)}, "course": {"epoch": 2, "epochs": [{"loss": 0.5, "best": True}]}}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, STATE, {"epoch": 2})
    checkpoints.save(tmp_path, {**STATE, "extra": None}, {"epoch": 3})
    found = checkpoints.load(tmp_path)
    assert found is not None
    assert found["course"] == STATE["course"]
    assert torch.equal(found["network"]["w"], STATE["network"]["w"])
    assert read_json(tmp_path / "checkpoint.json")["epoch"] == 3
    assert len(list(tmp_path.glob("state-*"))) == 1


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "garbage pointer", "empty pointer"])
def test_damage_is_said_and_thrown_away(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "key" / "run" / "0"
    checkpoints.save(folder, STATE, {})
    (state,) = folder.glob("state-*")
    content = state.read_bytes()
    if damage == "truncate":
        state.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        state.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    elif damage == "delete":
        state.unlink()
    else:
        (folder / "checkpoint.json").write_text("{nonsense" if damage == "garbage pointer" else "{}")
    assert checkpoints.load(folder) is None
    said = capsys.readouterr().err
    assert said.startswith("warning: the checkpoint in")
    assert said.endswith("training starts anew\n")
    assert said.count("\n") == 1
    assert not folder.exists()


def test_a_failed_save_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(tmp_path, STATE, {})

    def full(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(tmp_path, {**STATE, "later": 1}, {})
    found = checkpoints.load(tmp_path)
    assert found is not None
    assert "later" not in found


def test_clearing_leaves_what_others_keep_there(tmp_path: Path) -> None:
    folder = tmp_path / "key" / "run" / "0"
    checkpoints.save(folder, STATE, {})
    (folder / "mlflow.json").write_text("{}")
    checkpoints.clear(folder)
    assert [p.name for p in folder.iterdir()] == ["mlflow.json"]


def test_the_key_changes_with_what_changes_the_result_alone(tmp_path: Path) -> None:
    toy.write_workspace(tmp_path)

    def folder(changed: object) -> Path:
        return checkpoint_folder(changed, "toy_run", 0, tmp_path, tmp_path / "c")

    params = toy.params()
    first = folder(params)
    assert first.relative_to(tmp_path / "c").parts[1:] == ("toy_run", "0")
    assert folder(toy.params(checkpoint_every=7)) == first
    found = {first}
    for change in ("seed", "config", "classes", "threads"):
        other = copy.deepcopy(params)
        if change == "seed":
            other.seed = 2
        elif change == "config":
            other.runs["toy_run"].config = {"epochs": 3}
        elif change == "classes":
            other.tasks["covid_vs_rest"].classes = {"rest": ["normal"], "covid19": ["covid19"]}
        else:
            other.engine.threads = 2
        found.add(folder(other))
    data = tmp_path / "packs" / "toy" / "data.npy"
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found.add(folder(params))
    assert len(found) == 6
