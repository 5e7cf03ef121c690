"""X-ray sets with a table or folders by class, each in a miniature of its own layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from chestflow.data.cohen_metadata import label_of
from chestflow.data.identity import keyed_id
from chestflow.data.ingest import ingest
from chestflow.data.sources.base import Reject, Row, get, read_rows
from chestflow.data.withdrawal import find, remove
from chestflow.errors import DataError
from chestflow.files import read_parquet
from chestflow.imaging.read import REASONS
from tests.code.image_files import picture, write_png

COHEN = "patientid,offset,sex,age,finding,view,modality,folder,filename,license,clinical_notes\n"
AGCHUNG = "patientid,offset,sex,age,finding,survival,temperature,pO2 saturation,view,modality,{}artifacts,notes\n"
CHEXPERT = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Lung Opacity,Pneumonia,Support Devices\n"


def images(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        write_png(folder / name, picture(seed + 40 * len(folder.name)))


def listed(name: str, root: Path) -> tuple[dict[str, Row], dict[str, str]]:
    """Rows by key, and the reasons of rejects by key; every reason is of the vocabulary."""
    found = list(read_rows(name, root))
    rejects = {item.key: item.reason for item in found if isinstance(item, Reject)}
    assert set(rejects.values()) <= set(REASONS)
    rows = {item.key: item for item in found if isinstance(item, Row)}
    assert {row.label for row in rows.values()} <= {None, *get(name).INFO.classes}
    return rows, rejects


def cohen(root: Path) -> Path:
    lines = [
        "2,0,M,65,Pneumonia/Viral/COVID-19,PA,X-ray,images,a.png,,",
        "2,3,M,65,Pneumonia/Viral/COVID-19,L,X-ray,images,b.png,CC BY-NC-SA,",
        "3,0,F,,Pneumonia/Bacterial/Staphylococcus/MRSA,AP Supine,X-ray,images,c.png,CC BY,",
        "4,0,,40,todo,AP,X-ray,images,a.jpg,,",
        "4,1,,40,COVID-19,Axial,CT,volumes,ct.nii.gz,,",
        "5,0,F,30,No Finding,PA,X-ray,images,absent.png,,",
        "6,0,F,30,No Finding,PA,X-ray,images,c.png,,",
    ]
    root.mkdir(parents=True)
    (root / "metadata.csv").write_text(COHEN + "".join(f"{line}\n" for line in lines))
    images(root / "images", "a.png", "b.png", "c.png", "a.jpg")
    return root


def test_cohen_keeps_frontal_and_lateral_views_and_rejects_ct(tmp_path: Path) -> None:
    rows, rejects = listed("cohen", cohen(tmp_path / "cohen"))
    assert {key: (row.label, row.view, row.patient) for key, row in rows.items()} == {
        "images/a.png": ("covid19", "PA", "2"),
        "images/b.png": ("covid19", "L", "2"),
        "images/c.png": ("bacterial_pneumonia", "AP Supine", "3"),
        "images/a.jpg": (None, "AP", "4"),  # another image than a.png, of another patient
    }
    assert rejects == {
        "images/ct.nii.gz": "wrong_modality",
        "images/absent.png": "missing_file",
        "images/c.png": "listed_twice",
    }
    licences = {key: (row.licence, row.commercial_use) for key, row in rows.items()}
    assert licences["images/a.png"] == ("none stated", None)
    assert licences["images/b.png"] == ("CC BY-NC-SA", False)
    assert licences["images/c.png"] == ("CC BY", True)
    assert (rows["images/c.png"].sex, rows["images/c.png"].age) == ("F", None)


@pytest.mark.parametrize(
    ("finding", "label"),
    [
        ("SARS", "viral_pneumonia"),
        ("Pneumonia/Viral/SARS", "viral_pneumonia"),
        ("Pneumonia/Viral/COVID-19", "covid19"),
        ("COVID-19, ARDS", "covid19"),
        ("Pneumonia/Viral/Influenza/H1N1", "viral_pneumonia"),
        ("Pneumonia/Fungal/Pneumocystis", "other_infection"),
        ("Pneumonia/Lipoid", "non_covid"),
        ("Pneumonia/Bacterial", "bacterial_pneumonia"),
        ("Pneumonia", "pneumonia"),
        ("Tuberculosis", "other_infection"),
        ("No Finding", "normal"),
        ("Unknown", None),
        ("", None),
    ],
)
def test_both_forms_of_cohens_findings(finding: str, label: str | None) -> None:
    assert label_of(finding) == label


def test_withdrawing_a_patient_leaves_another_with_the_same_stem(tmp_path: Path) -> None:
    root = cohen(tmp_path / "cohen")
    patient = keyed_id("cohen", "patient", "2", "key")
    (held,) = find(patient, tmp_path, "key")
    assert remove(held, patient, "key") == 2
    left = (root / "metadata.csv").read_text()
    assert "a.jpg" in left
    assert "a.png" not in left
    assert "b.png" not in left


def test_figure1_finds_either_ending_and_joins_a_patients_images(tmp_path: Path) -> None:
    root = tmp_path / "figure1"
    images(root / "images", "COVID-00001.jpg", "COVID-00015a.png", "COVID-00015b.png", "COVID-00023.jpg")
    lines = [
        "COVID-00001,13,M,33,COVID-19,,,58,AP erect,X-ray,,caf\xe9",
        "COVID-00015a,,,67+,COVID-19,,,,,X-ray,,",
        "COVID-00015b,,,67+,,,,,,X-ray,,",
        "COVID-00023,,,,No finding,,,,,X-ray,,",
        "COVID-00024,,,,COVID-19,,,,,X-ray,,",
    ]
    (root / "metadata.csv").write_bytes((AGCHUNG.format("") + "".join(f"{line}\n" for line in lines)).encode("latin-1"))
    rows, rejects = listed("figure1", root)
    assert {key: (row.label, row.patient, row.view, row.age) for key, row in rows.items()} == {
        "images/COVID-00001.jpg": ("covid19", "COVID-00001", "AP Erect", 33.0),
        "images/COVID-00015a.png": ("covid19", "COVID-00015", None, None),  # 67+ is no age
        "images/COVID-00015b.png": (None, "COVID-00015", None, None),
        "images/COVID-00023.jpg": ("normal", "COVID-00023", None, None),
    }
    assert rejects == {"images/COVID-00024": "missing_file"}
    assert get("figure1").INFO.commercial_use is False


def test_actualmed_reads_its_images_by_name(tmp_path: Path) -> None:
    root = tmp_path / "actualmed"
    images(root / "images", "CR.1.png", "CR.2.png", "DX.3.png")
    lines = [
        "ANON196,,,,,,,,PA,X-ray,CR.1.png,,Inconclusive",
        "ANON196,,,,COVID-19,,,,AP,X-ray,CR.2.png,,",
        "ANON56,,,,No finding,,,,PA,X-ray,DX.3.png,,",
        "ANON57,,,,No finding,,,,PA,X-ray,DX.4.png,,",
    ]
    (root / "metadata.csv").write_text(AGCHUNG.format("imagename,") + "".join(f"{line}\n" for line in lines))
    rows, rejects = listed("actualmed", root)
    assert {key: (row.label, row.patient, row.view) for key, row in rows.items()} == {
        "images/CR.1.png": (None, "ANON196", "PA"),
        "images/CR.2.png": ("covid19", "ANON196", "AP"),
        "images/DX.3.png": ("normal", "ANON56", "PA"),
    }
    assert rejects == {"images/DX.4.png": "missing_file"}


@pytest.mark.parametrize("above", ["", "data", "data_upload_v3"])
def test_covid_xray_5k_takes_splits_and_patients_from_folders_and_names(tmp_path: Path, above: str) -> None:
    root = tmp_path / "covid_xray_5k"
    base = root / above
    copy = "covid_original_case.png_0d6b1a52-8a1f-4a5e-9d3b-0a1b2c3d4e5f.png"
    images(base / "train" / "covid", "case.png", copy)
    images(base / "train" / "non", "patient00051-study1-view1_frontal.jpg")
    images(base / "test" / "covid", "other.png")
    images(base / "test" / "non", "patient00052-study2-view1_lateral.jpg")
    images(base / "test" / "non" / "Atelectasis", "Atelectasis-patient35833-study1-view1_frontal.jpg")
    (root / "metadata.csv").write_text(COHEN + "7,0,F,50,Pneumonia/Viral/COVID-19,PA,X-ray,images,case.jpg,CC BY,\n")
    rows, rejects = listed("covid_xray_5k", root)
    found = {
        key.rsplit("/", 1)[1]: (row.label, row.patient_source, row.patient, row.view, row.official_split)
        for key, row in rows.items()
    }
    assert found == {
        "case.png": ("covid19", "cohen", "7", "PA", "train"),
        "other.png": ("covid19", None, None, None, "test"),
        "patient00051-study1-view1_frontal.jpg": ("non_covid", "chexpert", "patient00051", None, "train"),
        "patient00052-study2-view1_lateral.jpg": ("non_covid", "chexpert", "patient00052", "L", "test"),
        "Atelectasis-patient35833-study1-view1_frontal.jpg": ("non_covid", "chexpert", "patient35833", None, "test"),
    }
    assert list(rejects.values()) == ["derived_copy"]


def chexpert(root: Path) -> Path:
    top = "CheXpert-v1.0-small"
    lines = {
        "train": [
            f"{top}/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,1.0",
            f"{top}/train/patient00002/study2/view1_frontal.jpg,Male,87,Frontal,PA,,,1.0,",
            f"{top}/train/patient00002/study1/view1_frontal.jpg,Male,87,Frontal,AP,,1.0,-1.0,",
            f"{top}/train/patient00002/study1/view2_lateral.jpg,Male,87,Lateral,,,1.0,0.0,",
            f"{top}/train/patient00003/study1/view1_frontal.jpg,Unknown,0,Frontal,LL,,,,1.0",
        ],
        "valid": [f"{top}/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,0.0,0.0"],
    }
    for split, entries in lines.items():
        for number, line in enumerate(entries[:4]):
            write_png(root / line.split(",")[0], picture(number))
        (root / top / f"{split}.csv").write_text(CHEXPERT + "".join(f"{line}\n" for line in entries))
    return root


def test_chexpert_maps_two_findings_and_leaves_uncertain_pneumonia_unknown(tmp_path: Path) -> None:
    rows, rejects = listed("chexpert", chexpert(tmp_path / "chexpert"))
    assert [(row.label, row.view, row.patient, row.official_split) for row in rows.values()] == [
        ("normal", "AP", "patient00001", "train"),
        ("pneumonia", "PA", "patient00002", "train"),
        (None, "AP", "patient00002", "train"),
        ("non_covid", "L", "patient00002", "train"),
        ("non_covid", "AP", "patient64541", "tune"),
    ]
    assert rejects == {"train/patient00003/study1/view1_frontal.jpg": "missing_file"}
    first = rows["train/patient00001/study1/view1_frontal.jpg"]
    assert (first.sex, first.age, first.study) == ("F", 68.0, "patient00001/study1")


def test_chexpert_subset_and_withdrawal_by_whole_paths(tmp_path: Path) -> None:
    root = chexpert(tmp_path / "chexpert")
    patient = keyed_id("chexpert", "patient", "patient00001", "key")
    (held,) = find(patient, tmp_path, "key")
    assert remove(held, patient, "key") == 1
    assert (root / "CheXpert-v1.0-small/train.csv").read_text().count("\n") == 5  # the header and the others' lines
    wanted = ["CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg", "train/patient9/study1/view1.jpg"]
    (root / "subset.txt").write_text("\n".join(wanted))
    rows, rejects = listed("chexpert", root)
    assert list(rows) == ["train/patient00002/study2/view1_frontal.jpg"]
    assert rejects == {"train/patient9/study1/view1.jpg": "missing_file"}


@pytest.mark.parametrize("name", ["cohen", "figure1", "actualmed", "chexpert"])
def test_another_table_names_the_missing_columns(name: str, tmp_path: Path) -> None:
    root = tmp_path / name
    (root / "images").mkdir(parents=True)
    for file in ("metadata.csv", "train.csv", "valid.csv"):
        (root / file).write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="lacks the columns"):
        list(read_rows(name, root))


def test_ingest_reads_a_set_and_keeps_names_out(tmp_path: Path) -> None:
    ingest("cohen", cohen(tmp_path / "cohen"), tmp_path / "out", id_key="key", workers=1)
    manifest = read_parquet(tmp_path / "out" / "manifest.parquet")
    assert len(manifest) == 4
    assert manifest["view"].tolist().count("L") == 1
    assert manifest["patient_id"].str.match(r"^cohen-[0-9a-f]{12}$").all()
