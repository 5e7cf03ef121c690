"""Which temperature and threshold are in use: the papers' unless the tuned ones are better beyond doubt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestflow.errors import DataError
from chestflow.evaluation.calibration import OperatingPoint, operating_points, probabilities
from chestflow.evaluation.cases import load, pool, same_answers
from chestflow.evaluation.evidence import VIEWS
from chestflow.evaluation.metrics import decide
from chestflow.serving import bundle
from chestflow.tuning import calibration
from tests.code import study_outs


def _tune(tmp_path: Path, logits: np.ndarray, y: np.ndarray, criterion: str = "youden") -> tuple[dict, Path]:
    """Tune on made-up answers; the JSON and its path."""
    classes = ["a", "b", "covid19"][-logits.shape[1] :]
    table = pd.DataFrame(logits, columns=[f"logit_{c}" for c in classes])
    table = table.assign(image_id=[f"i{i:04}" for i in range(len(y))], patient_id=None, target=y)
    out = tmp_path / "out"
    (out / "predictions/run/0").mkdir(parents=True)
    table.to_parquet(out / "predictions/run/0/tune.parquet")
    params = study_outs.params(tune={"trials": 5, "bootstrap": 60, "criterion": criterion})
    calibration.tune("run", 0, params, out, tmp_path)
    file = out / "tune/calibration/run/0.json"
    return json.loads(file.read_text()), file


def _answers(n: int, scale: float, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose calibrated temperature is ``scale`` and best cut, on the log-odds, ``shift``."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 2, n)
    y = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(int)
    return np.stack([np.zeros(n), scale * odds + shift], axis=1), y


def test_calibrated_answers_keep_the_papers_point(tmp_path: Path) -> None:
    found, file = _tune(tmp_path, *_answers(600, 1.0))
    assert found["use"] == {"temperature": "paper", "threshold": "paper"}
    assert operating_points(file)[1] == OperatingPoint(1.0, 0.5)
    assert operating_points(file)[0] == OperatingPoint(found["temperature"], found["threshold"])


def test_overconfident_answers_get_their_temperature(tmp_path: Path) -> None:
    found, file = _tune(tmp_path, *_answers(600, 4.0))
    assert found["use"] == {"temperature": "tuned", "threshold": "paper"}
    assert operating_points(file)[1] == OperatingPoint(found["temperature"], 0.5)
    assert 3 < found["temperature"] < 5


def test_a_threshold_belongs_to_the_probabilities_that_it_cuts(tmp_path: Path) -> None:
    """Calibrated in width but shifted: T = 1 stays, and the cut in use must lie on the raw probabilities."""
    rng = np.random.default_rng(3)
    y = np.arange(400) % 2
    logits = np.stack([np.zeros(400), 2.5 + np.where(y == 1, 1.0, -1.0) + rng.normal(0, 0.4, 400)], axis=1)
    found, file = _tune(tmp_path, logits, y)
    tuned, served = operating_points(file)
    assert found["use"]["threshold"] == "tuned"
    assert served.temperature in (1.0, tuned.temperature)
    p = probabilities(logits, served.temperature)
    by_both = [decide(p, served.threshold), decide(probabilities(logits, tuned.temperature), tuned.threshold)]
    assert (by_both[0] == y).mean() > 0.97
    np.testing.assert_array_equal(*by_both)


def test_of_three_classes_the_most_probable_is_called_unless_a_cut_is_better(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 500)
    logits = rng.normal(0, 1, (500, 3)) + 2 * np.eye(3)[y]
    found, file = _tune(tmp_path, logits, y, "accuracy")
    assert found["use"]["threshold"] == "paper"
    served = operating_points(file)[1]
    assert served.threshold is None
    p = probabilities(logits)
    np.testing.assert_array_equal(decide(p, np.full(500, np.nan)), np.argmax(p, axis=1))
    assert (decide(p, 0.5) != np.argmax(p, axis=1)).any()  # a cut at 0.5 would be another rule


def _write(folder: Path, fold: int, threshold: float | None, temperature: float = 1.0) -> Path:
    file = folder / f"{fold}.json"
    default = {"temperature": temperature, "threshold": threshold}
    file.write_text(json.dumps({"temperature": 9.0, "threshold": 0.9, "default": default}))
    return file


@pytest.mark.parametrize(
    ("thresholds", "served"),
    [([0.5, 0.2, 0.3], 0.3), ([None, 0.2, 0.4], pytest.approx(0.3)), ([None, 0.2], None), ([None, None, 0.4], None)],
)
def test_folds_are_joined_by_medians_of_what_is_in_use(tmp_path: Path, thresholds: list, served: float | None) -> None:
    files = [_write(tmp_path, fold, value, 1.0 + fold) for fold, value in enumerate(thresholds)]
    assert bundle.calibrated(files) == OperatingPoint(1 + (len(files) - 1) / 2, served)


def test_a_file_without_a_decision_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text(json.dumps({"temperature": 1.0, "threshold": 0.5}))
    with pytest.raises(DataError, match="lacks temperature, threshold or default: run `dvc repro` again"):
        operating_points(tmp_path / "0.json")


@pytest.mark.parametrize(
    ("default", "twin"),
    [({"temperature": 1.0, "threshold": 0.5}, 0), ({"temperature": 3.0, "threshold": 0.2}, 1)],
)
def test_evaluation_measures_what_is_in_use_beside_raw_and_tuned(tmp_path: Path, default: dict, twin: int) -> None:
    params = study_outs.params(folds=1)
    study_outs.write(tmp_path, folds=1)
    file = tmp_path / "tune" / "calibration" / "ds_u" / "0.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"temperature": 3.0, "threshold": 0.2, "default": default}))
    cases, _ = pool(load("ds_u", params, tmp_path), ["cap", "covid19"])
    assert same_answers(cases, ["cap", "covid19"], VIEWS[2], VIEWS[twin])
    assert not same_answers(cases, ["cap", "covid19"], VIEWS[2], VIEWS[1 - twin])
