"""Paper 001's datasets assembled by recipe: the counts of its Table 1, on a manifest that holds more of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestflow.config import Cohort, Params, parse
from chestflow.data.groups import Groups
from chestflow.data.manifest import conform
from chestflow.data.roles import members_of
from chestflow.data.splits import make_splits
from chestflow.profiles import complete, read

#: set, label, images; more of each than the paper takes.
HELD = [
    ("cohen", "covid19", 140), ("cohen", "viral_pneumonia", 20),
    ("cohen_seg", "covid19", 26), ("cohen_seg", "normal", 4),
    ("nih", "pneumonia", 1700), ("nih", "normal", 60), ("nih", "non_covid", 60),
    ("v7", "covid19", 500), ("v7", "normal", 1650),
    ("v7", "viral_pneumonia", 1500), ("v7", "bacterial_pneumonia", 2900),
]  # fmt: skip
BOXED = 120


@pytest.fixture(scope="module")
def params(repository: Path) -> Params:
    return parse(complete(read("mag_sd_paper", repository / "profiles")))


@pytest.fixture(scope="module")
def manifest() -> pd.DataFrame:
    rows = [(source, label) for source, label, count in HELD for _ in range(count)]
    frame = pd.DataFrame(rows, columns=["source", "label"])
    number = np.arange(len(frame))
    frame = frame.assign(
        image_id=[f"{source}-{n:05d}" for source, n in zip(frame["source"], number, strict=True)],
        patient_id=[f"{source}-p{n // 3}" for source, n in zip(frame["source"], number, strict=True)],
        modality="cxr",
        view="PA",
        official_split=[
            "test" if source == "nih" and n % 4 == 0 else None
            for source, n in zip(frame["source"], number, strict=True)
        ],
    )
    frame["boxes"] = [None] * len(frame)
    ill = frame.index[(frame["source"] == "nih") & (frame["label"] == "pneumonia")][:BOXED]
    frame.loc[ill, "boxes"] = pd.Series([[[1.0, 2.0, 3.0, 4.0]]] * BOXED, index=ill)
    frame["infection_mask"] = [["a.png"] if source == "cohen_seg" else None for source in frame["source"]]
    return conform(frame)


@pytest.fixture(scope="module")
def split(params: Params, manifest: pd.DataFrame) -> tuple[pd.DataFrame, dict]:
    table = manifest[["image_id"]].assign(group_id=manifest["patient_id"], picture_id=manifest["image_id"])
    return make_splits(manifest, params.cohorts, params.split, seed=params.seed, groups=Groups(table, {}))


@pytest.mark.parametrize(
    ("cohort", "counts"),
    [
        ("a", {"covid19": 90, "pneumonia": 168}),
        ("b", {"covid19": 462, "pneumonia": 1567, "normal": 1602}),
        ("c", {"covid19": 462, "viral_pneumonia": 1449, "bacterial_pneumonia": 2816, "normal": 1602}),
    ],
)
def test_the_counts_of_table_1(
    split: tuple[pd.DataFrame, dict], manifest: pd.DataFrame, cohort: str, counts: dict[str, int]
) -> None:
    table = split[0]
    label = manifest.set_index("image_id")["label"]
    mine = table[table["cohort"] == cohort]
    for fold in range(5):
        held = mine[mine["fold"] == fold]
        assert held["image_id"].map(label).value_counts().to_dict() == counts
        assert set(held["role"]) == {"train", "tune", "test"}
    # Five folds whatever NIH's own list says: each image is tested once, and a patient in one fold alone.
    tested = mine[mine["role"] == "test"]
    assert len(tested) == sum(counts.values()) == tested["image_id"].nunique()
    assert (tested.groupby("group_id")["fold"].nunique() == 1).all()


def test_localisation_takes_annotated_images_and_trains_on_none(
    split: tuple[pd.DataFrame, dict], manifest: pd.DataFrame
) -> None:
    table, about = split
    rows = manifest.set_index("image_id")
    outside = table[(table["cohort"] == "localisation") & (table["fold"] == 0) & (table["role"] == "external")]
    found = rows.loc[outside["image_id"]]
    assert found.groupby("source")["label"].value_counts().to_dict() == {
        ("cohen_seg", "covid19"): 13, ("nih", "pneumonia"): 118,
    }  # fmt: skip
    assert (found["boxes"].notna() | found["infection_mask"].notna()).all()
    assert about["cohorts"]["localisation"]["taken"]["v7"]["covid19"]["taken"] == 462


def test_a_set_that_holds_fewer_is_reported(params: Params, manifest: pd.DataFrame) -> None:
    pneumonia = (manifest["source"] == "nih") & (manifest["label"] == "pneumonia")
    fewer = manifest.drop(index=manifest.index[pneumonia][1431:]).reset_index(drop=True)
    table = fewer[["image_id"]].assign(group_id=fewer["patient_id"], picture_id=fewer["image_id"])
    cohorts = {"b": params.cohorts["b"]}
    _, about = make_splits(fewer, cohorts, params.split, seed=params.seed, groups=Groups(table, {}))
    said = " ".join(about["cohorts"]["b"]["warnings"])
    assert "asks for 1567 images of pneumonia from nih, which has 1431" in said


@pytest.mark.parametrize("official", [True, False])
def test_a_cohort_sets_official_splits_aside(manifest: pd.DataFrame, official: bool) -> None:
    rows = members_of(manifest, Cohort(sets=["nih"], modality="cxr", official_test=official))
    assert bool(rows["official_split"].notna().any()) == official
    assert len(rows) == int((manifest["source"] == "nih").sum())
