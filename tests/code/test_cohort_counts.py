"""Cohorts assembled by counts: exactly so many images, whole patients first, and no shortfall in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from chestflow import profiles
from chestflow.config import Cohort, Split
from chestflow.data.covidx_tests import COVIDX5, VERSIONS
from chestflow.data.findings import Dataset
from chestflow.data.ingest import ingest
from chestflow.data.pooling import pool
from chestflow.data.splits import make_splits, write
from chestflow.errors import DataError
from chestflow.evaluation.report_data import about_splits
from chestflow.files import read_json, read_parquet
from tests.code.image_files import cohen_metadata, darkcovid, picture, write_png
from tests.data.manifests import dataset, hexes, manifest, row, thumbnails_by

#: MAG-SD's data sets (Table 1) from sets that have adapters: name -> take.
RECIPES = {
    "a": {"cohen": {"covid19": 90}, "nih": {"pneumonia": 168}},
    "b": {"v7": {"covid19": 462}, "nih": {"pneumonia": 1567, "normal": 1602}},
    "c": {
        "v7": {"covid19": 462},
        "kermany": {"viral_pneumonia": 1449, "bacterial_pneumonia": 2816, "normal": 1602},
    },
    "localisation": {"cohen_seg": {"covid19": 13}, "nih": {"pneumonia": 118}},
}
TOTALS = {"a": 258, "b": 3631, "c": 6329, "localisation": 131}


def images(source: str, label: str | None, count: int, each: int = 1, **more: Any) -> list[dict[str, Any]]:
    """``count`` images of a label, ``each`` of a patient."""
    return [
        row(
            number,
            label,
            source,
            image_id=f"{source}-{hexes(f'{source}{label}{number}', 12)}",
            patient_id=f"{source}-{hexes(f'{source}{label}{number // each}', 12)}",
            sha256=hexes(f"{source}{label}{number}", 64),
            phash=hexes(f"{source}{label}{number}", 16),
            **more,
        )
        for number in range(count)
    ]


def split(rows: list[dict[str, Any]], cohort: Cohort, seed: int = 1) -> tuple[pd.DataFrame, dict[str, Any]]:
    frame = manifest(rows)
    table, report = make_splits(frame, {"x": cohort}, Split(k=2, tune_share=0.5), seed=seed, thumbnails=thumbnails_by)
    columns = ["image_id", "source", "label", "patient_id"]
    return table[table["fold"] == 0].merge(frame[columns], on="image_id"), report["cohorts"]["x"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_papers_data_sets_have_exactly_their_counts(name: str) -> None:
    take = RECIPES[name]
    rows: list[dict[str, Any]] = []
    for source, labels in take.items():
        for place, (label, number) in enumerate(labels.items()):
            rows += images(source, label, number + 37, each=1 + place)
        rows += images(source, "non_covid", 40) + images(source, None, 5)  # what nobody asks for
    table, about = split(rows, Cohort(sets=list(take), modality="cxr", take=take))
    used = table[table["role"].isin(["train", "tune", "test"])]
    assert len(used) == len(table) == TOTALS[name]
    counted = {source: mine["label"].value_counts().to_dict() for source, mine in used.groupby("source")}
    assert counted == take
    assert about["warnings"] == []


def test_the_choice_depends_on_the_seed_alone() -> None:
    cohort = Cohort(sets=["s"], modality="cxr", take={"s": {"covid19": 20, "normal": 20}})
    rows = images("s", "covid19", 60, each=2) + images("s", "normal", 60)
    chosen = [set(split(given, cohort, seed)[0]["image_id"]) for given, seed in ((rows, 1), (rows[::-1], 1), (rows, 2))]
    assert chosen[0] == chosen[1] != chosen[2]


def test_whole_patients_first_and_one_cut_where_they_cannot_make_the_number() -> None:
    cohort = Cohort(sets=["s"], modality="cxr", take={"s": {"covid19": 10, "normal": None}})
    rows = images("s", "covid19", 60, each=3) + images("s", "normal", 20)
    table, about = split(rows, cohort)
    sizes = table[table["label"] == "covid19"].groupby("patient_id").size()
    assert sorted(sizes) == [1, 3, 3, 3]
    assert about["taken"]["s"]["covid19"] == {"asked": 10, "there": 60, "taken": 10, "split_groups": 1}
    assert about["taken"]["s"]["normal"]["taken"] == 20  # null takes all
    assert about["warnings"][0] == (
        "Cohort x: of covid19 from s one group gives a part of its images only, since no whole groups add to 10."
    )


def test_fewer_than_asked_for_is_counted_and_said() -> None:
    cohort = Cohort(sets=["s", "t"], modality="cxr", take={"s": {"covid19": 30, "cap": None}, "t": {"normal": 5}})
    table, about = split(images("s", "covid19", 12) + images("t", "normal", 12), cohort)
    assert table["label"].value_counts().to_dict() == {"covid19": 12, "normal": 5}
    assert about["taken"]["s"]["covid19"] == {"asked": 30, "there": 12, "taken": 12, "split_groups": 0}
    assert about["warnings"][:2] == [
        "Cohort x: take asks for 30 images of covid19 from s, which has 12 to give.",
        "Cohort x: take asks for cap from s, which has none to give.",
    ]


def test_a_choice_of_labels_by_set_leaves_the_rest_without_a_role() -> None:
    take: dict[str, dict[str, int | None]] = {
        "kermany": {"normal": None, "viral_pneumonia": None},
        "darkcovid": {"covid19": None},
    }
    cohort = Cohort(sets=["kermany", "darkcovid"], modality="cxr", take=take)
    rows = images("kermany", "normal", 10) + images("kermany", "viral_pneumonia", 10)
    rows += images("darkcovid", "covid19", 10) + images("darkcovid", "normal", 10) + images("kermany", "cap", 4)
    table, _ = split(rows, cohort)
    assert table.groupby(["source", "label"]).size().to_dict() == {
        ("darkcovid", "covid19"): 10,
        ("kermany", "normal"): 10,
        ("kermany", "viral_pneumonia"): 10,
    }
    data: Dataset = dataset(rows, cohorts={"chests": cohort})
    assert data.members("chests")["source"].value_counts().to_dict() == {"kermany": 20, "darkcovid": 10}


def test_copies_do_not_count_towards_the_number() -> None:
    rows = images("s", "covid19", 20) + images("t", "covid19", 20) + images("t", "normal", 20)
    for number in range(10):
        rows[20 + number]["phash"] = rows[number]["phash"]
    cohort = Cohort(sets=["s", "t"], modality="cxr", take={"t": {"covid19": 10, "normal": None}})
    table, about = split(rows, cohort)
    used = table[table["role"] != "excluded"]
    assert used.groupby(["source", "label"]).size()["t", "covid19"] == 10
    assert about["excluded"] == {"copy_of_an_image_of_another_set": 10}
    assert about["taken"]["t"]["covid19"]["there"] == 10


def test_views_and_annotations_choose_images() -> None:
    rows = images("s", "covid19", 12, view="PA") + images("s", "normal", 12) + images("s", "pneumonia", 6, view="L")
    table, _ = split(rows, Cohort(sets=["s"], modality="cxr", views=["PA", "AP"]))
    assert table["label"].value_counts().to_dict() == {"covid19": 12, "normal": 12}  # an unknown view stays
    rows += images("m", "covid19", 4, infection_mask=["a.png"]) + images("m", "normal", 4, boxes=[[0, 0, 2, 2]])
    rows += images("m", "pneumonia", 4)
    table, _ = split(rows, Cohort(sets=["s"], modality="cxr", external=["m"], annotated=["m"]))
    assert table.loc[table["source"] == "m", "label"].value_counts().to_dict() == {"covid19": 4, "normal": 4}
    assert set(table.loc[table["source"] == "m", "role"]) == {"external"}
    cohort = Cohort(sets=["s"], modality="cxr", external=["m"], annotated=["m"], take={"m": {"covid19": 3}})
    table, about = split(rows, cohort)
    assert table.loc[table["source"] == "m", ["label", "role"]].value_counts().to_dict() == {("covid19", "external"): 3}
    assert about["taken"]["m"]["covid19"]["there"] == 4


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"take": {"other": {"covid19": 5}}}, "names the set other, which is in neither"),
        ({"annotated": ["other"]}, "annotated names the set other"),
        ({"take": {"s": {}}}, "take.s names no label"),
        ({"take": {"s": {"covid19": 0}}}, "greater than or equal to 1"),
        ({"take": {"s": {"covid": 3}}}, "Input should be"),
        ({"labels": ["normal"], "moved_to_test": [{"covid19": 5}]}, "names the label covid19, which is not in labels"),
    ],
)
def test_wrong_cohorts_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Cohort(sets=["s"], modality="cxr", **more)


links = st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=25)


@given(links, st.integers(1, 30), st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_whatever_is_linked_numbers_are_met_and_groups_stay_together(
    same: list[tuple[int, int]], number: int, moved: int, seed: int
) -> None:
    rows = images("s", "covid19", 30) + images("t", "normal", 30)
    for first, second in same:
        rows[second]["patient_id"] = rows[first]["patient_id"]
    take: dict[str, dict[str, int | None]] = {"s": {"covid19": number}, "t": {"normal": None}}
    cohort = Cohort(sets=["s", "t"], modality="cxr", take=take, moved_to_test=[{"normal": moved}])
    try:
        table, about = split(rows, cohort, seed)
    except DataError:  # no whole groups add to the number, or too little is left, which other tests are about
        reject()
    assert (table["label"] == "covid19").sum() == number == about["taken"]["s"]["covid19"]["taken"]
    test = table[table["role"] == "test"]
    assert test["label"].tolist() == ["normal"] * moved
    assert table.groupby("group_id")["role"].nunique().max() == 1


def test_the_profile_of_covidx_nests_its_tests(repository: Path) -> None:
    values = profiles.read("covidx", repository / "profiles")["cohorts"]
    cohorts = {name: Cohort(**about) for name, about in values.items()}
    steps = [cohorts[f"covidx_{version}"].moved_to_test for version in VERSIONS]
    for more, number in zip(steps, VERSIONS.values(), strict=True):
        test = dict(COVIDX5["test"])
        for step in more:
            for label, count in step.items():
                test[label] += count
        assert test == dict.fromkeys(test, number)
    assert steps[1] == steps[2][:1]


def test_pooled_sets_that_share_a_picture_use_one_copy_and_say_so(tmp_path: Path) -> None:
    darkcovid(tmp_path / "data" / "darkcovid", each=6)
    lines = []
    for number in range(6):
        write_png(tmp_path / "data" / "cohen" / "images" / f"c{number}.png", picture(300 + number))
        lines.append(f"P{number},F,50,COVID-19,PA,X-ray,c{number}.png,CC BY,")
    shared = tmp_path / "data" / "cohen" / "images" / "c0.png"
    write_png(shared, picture(1))  # what darkcovid has as case-1.png
    cohen_metadata(tmp_path / "data" / "cohen" / "metadata.csv", lines)
    out = tmp_path / "out"
    for name in ("darkcovid", "cohen"):
        ingest(name, tmp_path / "data" / name, out / "ingest" / name, id_key="key", workers=1)
    pool(["cohen", "darkcovid"], out / "ingest", out)
    pairs = read_json(out / "pooling.json")["shared"]["pairs"]
    assert [pair["kind"] for pair in pairs] == ["identical_bytes"]
    cohorts = {"both": Cohort(sets=["cohen", "darkcovid"], modality="cxr")}
    write(out / "manifest.parquet", cohorts, Split(k=2), out, seed=1)
    table = read_parquet(out / "splits.parquet")
    first = table[table["fold"] == 0].set_index("image_id")["role"]
    assert first[pairs[0]["copy"]] == "excluded"
    assert first[pairs[0]["kept"]] in ("train", "tune", "test")
    assert (first == "excluded").sum() == 1
    report = read_json(out / "splits.json")
    assert report["cohorts"]["both"]["excluded"] == {"copy_of_an_image_of_another_set": 1}
    note, _ = about_splits(report)
    assert "Cohort both: 1 image excluded (copy of an image of another set 1)" in note
