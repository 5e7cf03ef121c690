"""Pooling of the sets' rows: nothing is lost, everything is counted, shared pictures and patients are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from chestflow.data.manifest import REJECT_COLUMNS
from chestflow.data.pooling import pool
from chestflow.errors import DataError
from chestflow.files import read_json, read_parquet
from tests.data.manifests import manifest, mixed, row, thumbnails_by


def place(folder: Path, rows: list[dict[str, Any]], rejects: int = 0) -> None:
    folder.mkdir(parents=True)
    manifest(rows).to_parquet(folder / "manifest.parquet", index=False)
    lost = [(folder.name, f"{folder.name}-{i:012x}", "truncated", "the file, it ends early") for i in range(rejects)]
    pd.DataFrame(lost, columns=list(REJECT_COLUMNS)).to_csv(folder / "rejects.csv", index=False)


def test_rows_and_rejects_of_all_sets_are_kept_and_counted(tmp_path: Path) -> None:
    place(tmp_path / "in/alpha", [*mixed(10), row(50, None, patient_id=None)], rejects=2)
    place(tmp_path / "in/beta", mixed(6, "beta", modality="ct_volume"), rejects=1)
    pool(["alpha", "beta"], tmp_path / "in", tmp_path, thumbnails=thumbnails_by)
    pooled = read_parquet(tmp_path / "manifest.parquet")
    assert len(pooled) == 17
    assert pooled["image_id"].is_monotonic_increasing
    rejects = pd.read_csv(tmp_path / "rejects.csv")
    assert list(rejects.columns) == list(REJECT_COLUMNS)
    assert rejects["detail"].tolist() == ["the file, it ends early"] * 3
    report = read_json(tmp_path / "pooling.json")
    assert report["images"] == 17
    assert report["sets"]["alpha"] == {
        "images": 11,
        "patients": 10,
        "without_patient": 1,
        "labels": {"cxr": {"covid19": 5, "normal": 5, "unlabelled": 1}},
        "rejects": {"truncated": 2},
    }
    assert report["sets"]["beta"]["labels"] == {"ct_volume": {"covid19": 3, "normal": 3}}
    assert report["shared"] == {"pairs": [], "patients": 0, "sentences": []}


@pytest.mark.parametrize("order", [["alpha", "beta"], ["beta", "alpha"]])
def test_what_sets_share_is_reported_for_the_set_named_first(tmp_path: Path, order: list[str]) -> None:
    alpha, beta = mixed(10), mixed(10, "beta")
    beta[0] |= {"sha256": alpha[0]["sha256"], "phash": alpha[0]["phash"]}
    beta[1] |= {"phash": alpha[1]["phash"], "patient_id": alpha[1]["patient_id"]}
    alpha[3] |= {"sha256": alpha[2]["sha256"]}  # within one set: no matter of pooling
    place(tmp_path / "in/alpha", alpha)
    place(tmp_path / "in/beta", beta)
    pool(order, tmp_path / "in", tmp_path, thumbnails=thumbnails_by)
    rows = {"alpha": alpha, "beta": beta}
    first, second = rows[order[0]], rows[order[1]]
    shared = read_json(tmp_path / "pooling.json")["shared"]
    assert shared["pairs"] == [
        {"kind": "identical_bytes", "kept": first[0]["image_id"], "copy": second[0]["image_id"]},
        {"kind": "same_picture", "kept": first[1]["image_id"], "copy": second[1]["image_id"]},
    ]
    assert shared["patients"] == 1
    assert len(shared["sentences"]) == 2
    assert len(read_parquet(tmp_path / "manifest.parquet")) == 20


def test_a_set_that_was_not_ingested_is_named(tmp_path: Path) -> None:
    place(tmp_path / "in/alpha", mixed(4))
    with pytest.raises(DataError, match=r"beta/manifest\.parquet is missing"):
        pool(["alpha", "beta"], tmp_path / "in", tmp_path)
    (tmp_path / "in/alpha/rejects.csv").unlink()
    with pytest.raises(DataError, match=r"rejects\.csv is missing"):
        pool(["alpha"], tmp_path / "in", tmp_path)
    assert not (tmp_path / "manifest.parquet").exists()


def test_rows_of_another_set_are_refused(tmp_path: Path) -> None:
    place(tmp_path / "in/alpha", mixed(4, "beta"))
    with pytest.raises(DataError, match="holds rows of beta"):
        pool(["alpha"], tmp_path / "in", tmp_path)
