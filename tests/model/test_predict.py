"""`chestflow predict` on files of every kind: answers, abstentions, broken ones, ratios, overlays and exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from chestflow.cli.predict import _table, overlay_names, predict
from chestflow.errors import ChestflowError, TrainingError
from chestflow.serving.answer import Answer, Predictor
from chestflow.serving.bundle import Weighting
from chestflow.tracking import registry
from tests import stores
from tests.code.image_files import write_series
from tests.model import bundles, toy_models

NOTICE = "PHANTOM MODEL, not for patients"
APP = typer.Typer()
APP.command()(predict)


@dataclass
class Files:
    xray: Path
    volume: Path
    infection: Path
    broken: Path
    blank: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    hu, infection = toy_models.ct(1, True)
    (folder / "broken.png").write_bytes(
        toy_models.write_xray(folder / "w.png", toy_models.xray(2, False)).read_bytes()[:200]
    )
    return Files(
        toy_models.write_xray(folder / "xray.png", toy_models.xray(1, True)),
        toy_models.write_ct(folder / "volume.nii.gz", hu),
        toy_models.write_ct(folder / "infection.nii.gz", infection.astype(np.uint8)),
        folder / "broken.png",
        toy_models.write_xray(folder / "blank.png", np.full((64, 64), 90, np.uint8)),
    )


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("single")
    bundles.write(folder, "plain")
    return Predictor(folder, "chestflow-plain v1")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("pair")
    bundles.write(folder, "pair")
    return Predictor(folder, "chestflow-pair v1")


def test_an_answer_is_complete(single: Predictor, files: Files) -> None:
    answer = single.answer(files.xray)
    assert answer.status == "answered"
    assert answer.notice == NOTICE
    assert set(answer.probabilities) == {"rest", "covid19"}
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert answer.label == ("covid19" if answer.probability >= answer.threshold else "rest")
    assert (answer.network, answer.ratio, answer.low) == ("single", "unknown", None)
    assert json.loads(json.dumps(answer.plain(), allow_nan=False))["model"] == "chestflow-plain v1"


def test_the_answer_is_the_one_that_training_predicted(single: Predictor, tmp_path: Path) -> None:
    import pandas as pd

    out = toy_models.trained() / "out"
    known = pd.read_parquet(out / "predictions/plain/0/test.parquet")
    for row in known.itertuples():
        index = int(row.image_id.split("-")[1])
        picture = toy_models.write_xray(tmp_path / "x.png", toy_models.xray(index, index % 2 == 1))
        answer = single.answer(picture)
        if answer.status == "answered":
            assert answer.probability == pytest.approx(row.p_covid19, abs=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_threshold_decides(tmp_path: Path, files: Files, threshold: float) -> None:
    bundles.write(tmp_path, "plain", threshold=threshold)
    assert Predictor(tmp_path, "m").answer(files.xray).label == ("covid19" if threshold == 0 else "rest")


def test_temperature_flattens(tmp_path: Path, files: Files, single: Predictor) -> None:
    bundles.write(tmp_path, "plain", temperature=1000.0)
    assert Predictor(tmp_path, "m").answer(files.xray).probability == pytest.approx(0.5, abs=1e-2)


def test_without_a_ratio_the_uniform_network_answers(pair: Predictor, files: Files, tmp_path: Path) -> None:
    answer = pair.answer(files.volume)
    assert (answer.status, answer.network, answer.ratio) == ("answered", "uniform", "unknown")
    bundles.write(tmp_path, "pair", weighting=Weighting(1.0, 1.0, 0.001, 0.03))
    certain = Predictor(tmp_path, "m").answer(files.volume, infection_mask=files.infection)
    assert certain.network == "ensemble"


def test_an_infection_mask_gives_the_ratio_and_the_weight(pair: Predictor, files: Files, tmp_path: Path) -> None:
    answers = {}
    for w in (0.0, 0.25, 1.0):
        bundles.write(tmp_path / str(w), "pair", weighting=Weighting(w, w, 0.001, 0.03))
        answers[w] = Predictor(tmp_path / str(w), "m").answer(files.volume, infection_mask=files.infection)
    assert 0.05 < answers[1.0].ratio < 0.5
    assert answers[0.0].probability != pytest.approx(answers[1.0].probability, abs=1e-4)
    mixed = 0.25 * answers[1.0].probability + 0.75 * answers[0.0].probability
    assert answers[0.25].probability == pytest.approx(mixed, abs=1e-6)


def test_w_depends_on_the_ratio() -> None:
    rule = Weighting(0.35, 0.96, 0.001, 0.03)
    assert [rule.at(r) for r in (0.0005, 0.001, 0.02, 0.03, 0.031)] == [0.35, 0.96, 0.96, 0.96, 0.35]


@pytest.mark.parametrize(("name", "mask"), [("xray", None), ("volume", "infection")])
def test_the_overlay_shows_picture_heat_and_notice(
    single: Predictor, pair: Predictor, files: Files, tmp_path: Path, name: str, mask: str | None
) -> None:
    predictor = single if name == "xray" else pair
    given = getattr(files, mask) if mask else None
    answer = predictor.answer(getattr(files, name), infection_mask=given, overlay=tmp_path / "o.png")
    assert answer.overlay == str(tmp_path / "o.png")
    picture = cv2.imread(answer.overlay)
    assert picture.shape[1] == 960
    banner = picture[10, -5]
    assert tuple(banner) == (30, 30, 200)  # the red of the notice, BGR
    left, right = np.array_split(picture[80:].astype(int), 2, axis=1)
    assert (left.max(axis=2) - left.min(axis=2)).max() == 0  # the picture itself is grey
    assert np.abs(left - right).max() > 30  # the heat is not


def test_an_infection_mask_of_another_size_is_said(pair: Predictor, files: Files, tmp_path: Path) -> None:
    small = toy_models.write_ct(tmp_path / "small.nii.gz", np.ones((4, 4, 4), np.uint8))
    answer = pair.answer(files.volume, infection_mask=small)
    assert (answer.status, answer.reason) == ("unreadable", "mask_size")
    assert "missing" in pair.answer(files.volume, infection_mask=tmp_path / "no.nii.gz").detail


def test_a_damaged_model_is_no_answer(tmp_path: Path, files: Files) -> None:
    bundles.write(tmp_path, "plain")
    weights = tmp_path / "networks/plain-0/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="damaged"):
        Predictor(tmp_path, "m").answer(files.xray)


def test_two_files_of_one_name_keep_two_overlays() -> None:
    assert overlay_names([Path("a/x.png"), Path("b/x.dcm"), Path("y.nii.gz")]) == ["x", "x-2", "y"]


def test_the_table_says_where_a_ratio_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    known = {"status": "answered", "model": "m", "label": "covid19", "probability": 0.9, "network": "ensemble"}
    _table(
        [Answer("a", **known, ratio=0.0123, ratio_from="network"), Answer("b", **known, ratio=0.02, ratio_from="mask")]
    )
    lines = capsys.readouterr().out.splitlines()
    assert any("ratio from" in line for line in lines)
    first, second = (next(line.split() for line in lines if line.split()[:1] == [name]) for name in "ab")
    assert first[-3:] == ["0.0123", "network", "ensemble"]
    assert second[-3:] == ["0.0200", "mask", "ensemble"]
    _table([Answer("a", **{**known, "network": "single"})])
    assert "ratio" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        root = stores.give(tmp_path_factory.mktemp("registered"), patch)
        patch.setenv("COLUMNS", "200")
        shutil.copytree(toy_models.trained() / "out", root / "out")
        registry.register(toy_models.params(), "plain")
        registry.register(toy_models.params(), "pair")
        yield root


def _call(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(APP, [str(a) for a in arguments])
    if isinstance(done.exception, ChestflowError):
        raise done.exception
    return done.exit_code, done.output


def test_the_command_reports_one_broken_file_and_answers_the_rest(registered: Path, files: Files) -> None:
    target = registered / "answers.json"
    code, text = _call(
        "plain", files.xray, files.broken, files.blank, files.volume, "--json", target, "--overlays", registered / "o"
    )
    assert code == 1
    assert text.count(NOTICE) == 5  # above the table and in each row
    assert "chestflow-plain v1" in text
    answers = json.loads(target.read_text())
    assert [a["status"] for a in answers] == ["answered", "unreadable", "abstained", "abstained"]
    assert [a["reason"] for a in answers] == [None, "truncated", "blank", "wrong_modality"]
    assert all(a["notice"] == NOTICE for a in answers)
    assert [path.name for path in (registered / "o").iterdir()] == ["xray.png"]


@pytest.mark.parametrize(("names", "code"), [(["xray"], 0), (["blank"], 0), (["broken"], 2), (["broken", "xray"], 1)])
def test_exit_codes(registered: Path, files: Files, names: list[str], code: int) -> None:
    assert _call("plain", *(getattr(files, name) for name in names))[0] == code


def test_json_alone_on_standard_output(registered: Path, files: Files) -> None:
    code, text = _call("plain", files.xray, "--json", "-")
    assert code == 0
    assert json.loads(text)[0]["status"] == "answered"


def test_a_dicom_folder_is_a_volume(registered: Path, tmp_path: Path) -> None:
    hu, _ = toy_models.ct(1, True)
    write_series(tmp_path / "series", hu)
    answers = json.loads(_call("pair", tmp_path / "series", "--json", "-")[1])
    assert answers[0]["status"] in ("answered", "abstained")
    assert answers[0]["reason"] in (None, "lung_area", "unlike_training")


@pytest.mark.parametrize(
    ("model", "message"),
    [("plain@staging", "no alias staging; it has candidate"), ("other@staging", "is unknown; registered are")],
)
def test_an_unknown_model_or_alias_says_what_exists(registered: Path, files: Files, model: str, message: str) -> None:
    with pytest.raises(ChestflowError, match=message):
        _call(model, files.xray)


def test_one_mask_is_for_one_file(registered: Path, files: Files) -> None:
    with pytest.raises(ChestflowError, match="belongs to one file, 2 were given"):
        _call("pair", files.volume, files.volume, "--infection-mask", files.infection)
