"""Stage validate: expectations of each row, the JSON that it leaves, and the stop on a critical finding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from chestflow.config import Params, load, parse
from chestflow.data.expectation_suite import check, suite
from chestflow.data.manifest import COLUMNS, LABELS, MODALITIES, REJECT_COLUMNS
from chestflow.data.validation import validate
from chestflow.errors import ValidationFailed
from tests.data.manifests import manifest, mixed, row, thumbnails_by


@pytest.fixture
def params(repository: Path) -> Params:
    """The committed parameters, with the synthetic set in place of the phantoms."""
    values = load(repository / "params.yaml").model_dump(by_alias=True)
    cohort = {"sets": ["alpha"], "modality": "cxr"}
    values |= {
        "data": {"sets": ["alpha"]},
        "cohorts": {"chests": cohort},
        "tasks": {"task": {"cohort": "chests", "classes": {"rest": ["normal"], "covid19": ["covid19"]}}},
        "runs": {"run": {"method": "covidnet", "task": "task", "recipe": "cxr_96_clahe"}},
        "ensembles": {},
        "infection": {},
    }
    values["segment"]["cxr_lungs"]["sets"] = []
    return parse(values)


def place(folder: Path, rows: list[dict[str, Any]]) -> Path:
    manifest(rows).to_parquet(folder / "manifest.parquet", index=False)
    pd.DataFrame(columns=list(REJECT_COLUMNS)).to_csv(folder / "rejects.csv", index=False)
    return folder


def test_clean_data_passes_and_leaves_the_same_bytes_twice(tmp_path: Path, params: Params) -> None:
    place(tmp_path, mixed())
    validate(params, tmp_path, tmp_path / "gx", thumbnails=thumbnails_by)
    first = (tmp_path / "validation.json").read_bytes()
    validate(params, tmp_path, None, thumbnails=thumbnails_by)
    assert (tmp_path / "validation.json").read_bytes() == first
    report = json.loads(first)
    assert report["passed"] is True
    assert report["warnings"] == []
    assert all(item["met"] for item in report["expectations"])
    assert len(report["expectations"]) == len(suite()["expectations"])
    assert (tmp_path / "gx" / "index.html").is_file()
    assert not any(word in first.decode() for word in ("202", "run_time", "batch_id", str(tmp_path)))


def test_a_critical_finding_stops_after_the_json_is_written(
    tmp_path: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(i, "covid19", color_mode="RGBA" if i < 9 else "L", patient_id=None) for i in range(30)]
    place(tmp_path, rows)
    with pytest.raises(ValidationFailed, match=r"1 critical finding in the data.*validation\.json"):
        validate(params, tmp_path, None, thumbnails=thumbnails_by)
    report = json.loads((tmp_path / "validation.json").read_text())
    assert report["passed"] is False
    assert [finding["rule"] for finding in report["critical"]] == ["one_class_only"]
    assert [finding["rule"] for finding in report["warnings"]] == ["patients_unknown"]
    table = capsys.readouterr().out
    assert "one_class_only" in table
    assert "critical" in table
    assert "data/alpha" not in table
    assert ValidationFailed.exit_code == 3


def put(frame: pd.DataFrame, line: int, **values: Any) -> None:
    for column, value in values.items():
        frame[column] = frame[column].astype(object)
        frame.loc[frame.index[line], column] = value
        frame[column] = frame[column].astype(COLUMNS[column])


#: (expectation, column) -> values that break it, each in a row of its own
BREAKING: dict[tuple[str, str], dict[str, Any]] = {
    ("expect_column_values_to_not_be_null", "image_id"): {"image_id": None},
    ("expect_column_values_to_match_regex", "image_id"): {"image_id": "Smith^John.png"},
    ("expect_column_values_to_match_regex", "patient_id"): {"patient_id": "00000013"},
    ("expect_column_values_to_not_be_null", "path"): {"path": None},
    ("expect_column_values_to_not_be_null", "modality"): {"modality": None, "phash": "0" * 16},
    ("expect_column_values_to_be_in_set", "modality"): {"modality": "mri"},
    ("expect_column_values_to_be_in_set", "label"): {"label": "covid"},
    ("expect_column_values_to_not_be_null", "sha256"): {"sha256": None},
    ("expect_column_values_to_match_regex", "sha256"): {"sha256": "abc"},
    ("expect_column_values_to_not_be_null", "phash"): {"phash": None},
    ("expect_column_values_to_not_be_null", "width"): {"width": None},
    ("expect_column_values_to_be_between", "width"): {"width": 8},
    ("expect_column_values_to_not_be_null", "height"): {"height": None},
    ("expect_column_values_to_be_between", "height"): {"height": 9000},
    ("expect_column_values_to_be_between", "depth"): {"depth": 2, "modality": "ct_volume"},
    ("expect_column_values_to_be_in_set", "file_format"): {"file_format": "bmp"},
    ("expect_column_values_to_be_between", "age"): {"age": 93.0},
    ("expect_column_values_to_be_in_set", "sex"): {"sex": "female"},
    ("expect_column_values_to_be_in_set", "official_split"): {"official_split": "val"},
    ("expect_column_values_to_not_be_null", "licence"): {"licence": None},
}
#: These take more than a value in a row; each has a test below.
OTHERS = {("expect_table_row_count_to_be_between", None), ("expect_column_values_to_be_unique", "image_id")}


def failed(frame: pd.DataFrame) -> dict[tuple[str, str | None], int | None]:
    return {(item.kind, item.column): item.unexpected for item in check(frame) if not item.met}


def test_every_expectation_has_a_case_that_breaks_it() -> None:
    named = {(item["type"], item["kwargs"].get("column")) for item in suite()["expectations"]}
    assert len(named) == len(suite()["expectations"])
    assert named == set(BREAKING) | OTHERS


def test_each_expectation_counts_the_one_row_that_breaks_it() -> None:
    frame = manifest(mixed(len(BREAKING) + 2))
    for line, values in enumerate(BREAKING.values()):
        put(frame, line, **values)
    assert failed(frame) == dict.fromkeys(BREAKING, 1)


def test_an_identity_given_twice_fails() -> None:
    frame = manifest(mixed(12))
    put(frame, 3, image_id=frame["image_id"].iloc[0])
    assert failed(frame) == {("expect_column_values_to_be_unique", "image_id"): 2}


def test_an_empty_manifest_fails() -> None:
    frame = manifest(mixed(12)).head(0)
    assert set(failed(frame)) == {("expect_table_row_count_to_be_between", None)}


def test_a_failed_expectation_shows_no_value() -> None:
    frame = manifest(mixed(12))
    put(frame, 3, patient_id="Smith^John")
    (item,) = [item for item in check(frame) if not item.met]
    assert item.as_finding().severity == "critical"
    assert "1 row" in item.as_finding().message
    assert "Smith" not in str(item.as_finding())


def test_the_suite_knows_the_manifests_vocabulary() -> None:
    asked = [item["kwargs"] for item in suite()["expectations"]]
    sets = {kwargs["column"]: kwargs["value_set"] for kwargs in asked if "value_set" in kwargs}
    assert sets["label"] == list(LABELS)
    assert sets["modality"] == list(MODALITIES)
    assert {kwargs.get("column", "image_id") for kwargs in asked} <= set(COLUMNS)
