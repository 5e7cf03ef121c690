"""Stage validate: expectations of each row, the JSON that it leaves, and the stop on a critical finding."""

from __future__ import annotations

import json
from collections.abc import Callable
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


Change = Callable[[pd.DataFrame], None]


def put(column: str, value: Any) -> Change:
    def change(frame: pd.DataFrame) -> None:
        frame[column] = frame[column].astype(object)
        frame.loc[frame.index[3], column] = value
        frame[column] = frame[column].astype(COLUMNS[column])

    return change


#: (expectation, column) -> what breaks it; every expectation of the suite stands here
BREAKING: dict[tuple[str, str | None], Change] = {
    ("expect_table_row_count_to_be_between", None): lambda frame: frame.drop(frame.index, inplace=True),
    ("expect_column_values_to_not_be_null", "image_id"): put("image_id", None),
    ("expect_column_values_to_be_unique", "image_id"): lambda f: put("image_id", f["image_id"].iloc[0])(f),
    ("expect_column_values_to_match_regex", "image_id"): put("image_id", "Smith^John.png"),
    ("expect_column_values_to_match_regex", "patient_id"): put("patient_id", "00000013"),
    ("expect_column_values_to_not_be_null", "path"): put("path", None),
    ("expect_column_values_to_not_be_null", "modality"): put("modality", None),
    ("expect_column_values_to_be_in_set", "modality"): put("modality", "mri"),
    ("expect_column_values_to_be_in_set", "label"): put("label", "covid"),
    ("expect_column_values_to_not_be_null", "sha256"): put("sha256", None),
    ("expect_column_values_to_match_regex", "sha256"): put("sha256", "abc"),
    ("expect_column_values_to_not_be_null", "phash"): put("phash", None),
    ("expect_column_values_to_not_be_null", "width"): put("width", None),
    ("expect_column_values_to_be_between", "width"): put("width", 8),
    ("expect_column_values_to_not_be_null", "height"): put("height", None),
    ("expect_column_values_to_be_between", "height"): put("height", 9000),
    ("expect_column_values_to_be_between", "depth"): lambda f: (
        put("modality", "ct_volume")(f),
        put("depth", 2)(f),
    ),
    ("expect_column_values_to_be_in_set", "file_format"): put("file_format", "bmp"),
    ("expect_column_values_to_be_between", "age"): put("age", 93.0),
    ("expect_column_values_to_be_in_set", "sex"): put("sex", "female"),
    ("expect_column_values_to_be_in_set", "official_split"): put("official_split", "val"),
    ("expect_column_values_to_not_be_null", "licence"): put("licence", None),
}


def test_every_expectation_has_a_case_that_breaks_it() -> None:
    named = [(item["type"], item["kwargs"].get("column")) for item in suite()["expectations"]]
    assert sorted(named, key=str) == sorted(BREAKING, key=str)


@pytest.mark.parametrize("kind", BREAKING, ids=lambda kind: f"{kind[0].removeprefix('expect_')}-{kind[1]}")
def test_each_expectation_fails_where_it_should(kind: tuple[str, str | None]) -> None:
    frame = manifest(mixed(12))
    BREAKING[kind](frame)
    broken = {(item.kind, item.column) for item in check(frame) if not item.met}
    assert kind in broken


def test_a_failed_expectation_shows_no_value() -> None:
    frame = manifest(mixed(12))
    put("patient_id", "Smith^John")(frame)
    (failed,) = [item for item in check(frame) if not item.met]
    assert failed.as_finding().severity == "critical"
    assert "1 rows" in failed.as_finding().message
    assert "Smith" not in str(failed.as_finding())


def test_the_suite_knows_the_manifests_vocabulary() -> None:
    sets = {i["kwargs"]["column"]: i["kwargs"]["value_set"] for i in suite()["expectations"] if "value_set" in i["kwargs"]}
    assert sets["label"] == list(LABELS)
    assert sets["modality"] == list(MODALITIES)
    assert {i["kwargs"].get("column", "image_id") for i in suite()["expectations"]} <= set(COLUMNS)
