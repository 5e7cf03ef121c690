"""COVIDx's label lists of several versions, with images where its notebooks put them or in the collections' folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from chestflow.data.covidx_lists import collection_of
from chestflow.data.identity import keyed_id
from chestflow.data.ingest import ingest
from chestflow.data.sources.base import Reject, Row, read_rows
from chestflow.data.withdrawal import find, remove
from chestflow.errors import DataError
from chestflow.files import read_parquet
from tests.code.image_files import cohen_metadata, picture, write_dicom, write_png

UUIDS = [f"0000000{n}-3b4c-4d5e-8f90-a1b2c3d4e5f6" for n in range(4)]
TRAIN = [
    "2 lancet a.jpeg COVID-19 cohen",
    "326a case.png pneumonia cohen",
    "COVID-00039a COVID-00039a.jpg COVID-19 fig1",
    "COVID-00039b COVID-00039b.jpg COVID-19 fig1",
    "ANON196 CR.1.2.png COVID-19 actmed",
    "COVID-19(69) COVID-19(69).png COVID-19 sirm",
    f"{UUIDS[0]} {UUIDS[0]}.png normal rsna",
    f"{UUIDS[1]} {UUIDS[1]}.png pneumonia rsna",
]
TEST = [
    f"{UUIDS[2]} {UUIDS[2]}.png normal rsna",
    "19 gone.jpg COVID-19 cohen",
    f"{UUIDS[2]} {UUIDS[2]}.png normal rsna",
]


def lists(root: Path, train: list[str], test: list[str], version: str = "_COVIDx5") -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / f"train{version}.txt").write_text("".join(f"{line}\n" for line in [*train, ""]))
    (root / f"test{version}.txt").write_text("".join(f"{line}\n" for line in test))


def built(root: Path, train: list[str], test: list[str]) -> None:
    """Images in train/ and test/, as COVID-Net's notebooks copy them."""
    for split, lines in (("train", train), ("test", test)):
        for seed, line in enumerate(lines):
            name = line.split(maxsplit=1)[1]
            name = name[: name.index(".") + 1] + name[name.index(".") + 1 :].split(" ")[0]
            write_png(root / split / f"{name}.tmp.png", picture(seed)).rename(root / split / name)


def collections(root: Path) -> None:
    """The same images in the folders of the collections that COVIDx takes from."""
    write_png(root / "covid-chestxray-dataset/images/case.png", picture(1))
    write_png(root / "covid-chestxray-dataset/images/x.png", picture(2)).rename(
        root / "covid-chestxray-dataset/images/lancet a.jpeg"
    )
    cohen_metadata(
        root / "covid-chestxray-dataset/metadata.csv",
        ["2,M,65,COVID-19,PA,X-ray,lancet a.jpeg,CC BY,", "326a,F,40,SARS,AP,X-ray,case.png,,"],
    )
    for place, name in enumerate(("COVID-00039a.jpg", "COVID-00039b.jpg")):
        folder = root / "Figure1-COVID-chestxray-dataset/images"
        write_png(folder / "x.png", picture(3 + place)).rename(folder / name)
    write_png(root / "Actualmed-COVID-chestxray-dataset/images/CR.1.2.png", picture(5))
    write_png(root / "COVID-19-Radiography-Database/COVID-19/COVID-19 (69).png", picture(6))
    for place, name in enumerate(UUIDS[:3]):
        pixels = np.asarray(picture(7 + place))
        write_dicom(root / "rsna-pneumonia-detection-challenge/stage_2_train_images" / f"{name}.dcm", pixels)


def listed(root: Path) -> tuple[dict[str, Row], dict[str, str]]:
    found = list(read_rows("covidx", root))
    return (
        {item.key: item for item in found if isinstance(item, Row)},
        {item.key: item.reason for item in found if isinstance(item, Reject)},
    )


@pytest.mark.parametrize("where", ["", "labels"])
def test_labels_patients_and_splits_of_version_5(tmp_path: Path, where: str) -> None:
    lists(tmp_path / where, TRAIN, TEST)
    built(tmp_path, TRAIN, TEST[:1])
    rows, rejects = listed(tmp_path)
    assert {key: (row.label, row.patient_source, row.patient, row.site) for key, row in rows.items()} == {
        "train/lancet a.jpeg": ("covid19", "cohen", "2", "cohen"),
        "train/case.png": ("pneumonia", "cohen", "326a", "cohen"),
        "train/COVID-00039a.jpg": ("covid19", "figure1", "COVID-00039", "fig1"),
        "train/COVID-00039b.jpg": ("covid19", "figure1", "COVID-00039", "fig1"),
        "train/CR.1.2.png": ("covid19", "actualmed", "ANON196", "actmed"),
        "train/COVID-19(69).png": ("covid19", None, "COVID-19(69)", "sirm"),
        f"train/{UUIDS[0]}.png": ("normal", "rsna", UUIDS[0], "rsna"),
        f"train/{UUIDS[1]}.png": ("pneumonia", "rsna", UUIDS[1], "rsna"),
        f"test/{UUIDS[2]}.png": ("normal", "rsna", UUIDS[2], "rsna"),
    }
    assert {key.split("/")[0]: row.official_split for key, row in rows.items()} == {"train": "train", "test": "test"}
    assert rejects == {"test/gone.jpg": "missing_file", f"test/{UUIDS[2]}.png": "listed_twice"}


def test_images_in_the_collections_own_folders(tmp_path: Path) -> None:
    root = tmp_path / "covidx"
    lists(root, TRAIN, TEST[:1])
    collections(root)
    rows, rejects = listed(root)
    assert rejects == {}
    assert len(rows) == 9
    first = rows["train/lancet a.jpeg"]
    assert (first.view, first.sex, first.age, first.licence, first.commercial_use) == ("PA", "M", 65.0, "CC BY", True)
    assert {row.patient_source for key, row in rows.items() if UUIDS[0] in key} == {"rsna"}
    mapping = root / "rsna-pneumonia-detection-challenge" / "pneumonia-challenge-dataset-mappings_2018.json"
    mapping.write_text(json.dumps([{"subset_img_id": name, "img_id": "00000013_005.png"} for name in UUIDS[:2]]))
    known, _ = listed(root)
    both = [(row.patient_source, row.patient) for row in known.values() if row.site == "rsna"]
    assert both == [("nih", "00000013"), ("nih", "00000013"), ("rsna", UUIDS[2])]
    ingest("covidx", root, tmp_path / "out", id_key="key", workers=1)
    manifest = read_parquet(tmp_path / "out" / "manifest.parquet")
    assert manifest["file_format"].value_counts().to_dict() == {"png": 6, "dicom": 3}
    assert manifest["official_split"].value_counts().to_dict() == {"train": 8, "test": 1}


@pytest.mark.parametrize(
    ("version", "lines", "labels"),
    [
        ("_split_v1", ["3 a.png viral", "29 b.png bacteria", "10000927 c.png normal"], None),
        ("_COVIDx2", ["2 a.png COVID-19", f"{UUIDS[0]} b.png normal", "8 c.png pneumonia"], None),
        ("_COVIDx6", ["2 a.png positive cohen", f"{UUIDS[0]} b.png negative rsna"], ["covid19", "non_covid"]),
        ("_COVIDx_CXR-3A", ["419639-003251 a.png COVID-19 ricord"], ["covid19"]),
        ("", ["S1 a.png positive bimcv"], ["covid19"]),
    ],
)
def test_lists_of_other_versions(tmp_path: Path, version: str, lines: list[str], labels: list[str] | None) -> None:
    lists(tmp_path, lines, [], version)
    built(tmp_path, lines, [])
    rows, _ = listed(tmp_path)
    if version == "_split_v1":
        labels = ["viral_pneumonia", "bacterial_pneumonia", "normal"]
    assert [row.label for row in rows.values()] == (labels or ["covid19", "normal", "pneumonia"])
    if version == "_COVIDx2":  # no fourth column: the patient's name tells the collection
        assert [row.patient_source for row in rows.values()] == ["cohen", "rsna", "cohen"]


def test_collections_by_the_form_of_names() -> None:
    names = ["326a", "COVID-00039a", "ANON7", "COVID-19(69)", UUIDS[0], "10000927", "419639-003251"]
    assert [collection_of(name) for name in names] == [
        "cohen",
        "fig1",
        "actmed",
        "sirm",
        "rsna",
        "kermany",
        "unknown",
    ]


def test_several_versions_a_missing_list_and_odd_lines_are_one_clear_line(tmp_path: Path) -> None:
    lists(tmp_path, TRAIN, TEST)
    (tmp_path / "train_COVIDx3.txt").write_text("")
    with pytest.raises(DataError, match=r"several versions of COVIDx \(COVIDx3, COVIDx5\): leave one"):
        list(read_rows("covidx", tmp_path))
    (tmp_path / "train_COVIDx3.txt").unlink()
    (tmp_path / "test_COVIDx5.txt").unlink()
    with pytest.raises(DataError, match=r"not laid out like COVIDx: it lacks 'test_COVIDx5\.txt'"):
        list(read_rows("covidx", tmp_path))
    lists(tmp_path, [*TRAIN, "2 a.png flu cohen"], [])
    with pytest.raises(DataError, match=r"train_COVIDx5\.txt, line 9: not '<patient> <file> <class>"):
        list(read_rows("covidx", tmp_path))


def test_a_withdrawn_patient_leaves_the_lists_too(tmp_path: Path) -> None:
    root = tmp_path / "covidx"
    lists(root / "labels", TRAIN, TEST[:1])
    built(root, TRAIN, TEST[:1])
    patient = keyed_id("figure1", "patient", "COVID-00039", "key")
    (held,) = find(patient, tmp_path, "key")
    assert remove(held, patient, "key") == 2
    left = (root / "labels" / "train_COVIDx5.txt").read_text()
    assert "COVID-00039" not in left
    assert len(left.split("\n")) == len(TRAIN)
