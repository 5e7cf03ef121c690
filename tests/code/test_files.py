"""Nothing half-written is ever read as whole."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from chestflow.errors import ConfigError, DataError, one_line_errors
from chestflow.files import atomic_path, read_json, read_parquet, write_json


def test_a_failed_write_leaves_the_earlier_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_json(path, {"a": 1})

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("{half")
            raise RuntimeError("killed here")

    with pytest.raises(RuntimeError, match="killed here"):
        interrupted()
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict_and_deterministic(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": math.nan, "a": np.float32(0.5), "c": np.arange(2), "d": (1, Path("x"))})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": 0.5, "b": None, "c": [0, 1], "d": [1, "x"]}
    assert "NaN" not in text
    write_json(tmp_path / "b.json", {"d": (1, Path("x")), "c": np.arange(2), "a": np.float32(0.5), "b": math.nan})
    assert (tmp_path / "b.json").read_text() == text


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"splits\.parquet is missing.*dvc repro"):
        read_parquet(tmp_path / "splits.parquet")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ConfigError("params.yaml: sed is unknown"), 2, "error: params.yaml: sed is unknown"),
        (OSError(28, "No space left on device", "out/packs"), 2, "the disk is full"),
        (PermissionError(13, "Permission denied", "out"), 2, "permission denied"),
    ],
)
def test_user_errors_are_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture, error: Exception, code: int, says: str
) -> None:
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise error
    assert caught.value.code == code
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError
