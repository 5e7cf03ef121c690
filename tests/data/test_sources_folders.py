"""Sets of class folders, annotations and score tables, each as a miniature in its source's layout."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestflow.data.ingest import ingest
from chestflow.data.sources import v7
from chestflow.data.sources.base import Reject, Row, mask_reference, parse_mask_reference, read_rows
from chestflow.data.sources.kermany import named
from chestflow.data.spreadsheet import read_sheet
from chestflow.data.withdrawal import find, remove
from chestflow.errors import DataError
from chestflow.imaging.images import Unreadable
from chestflow.imaging.read import read_mask
from tests.code.image_files import cohen_metadata, picture, write_png

SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def listed(name: str, root: Path) -> tuple[dict[str, Row], list[Reject]]:
    found = list(read_rows(name, root))
    rows = {Path(row.key).stem: row for row in found if isinstance(row, Row)}
    return rows, [row for row in found if isinstance(row, Reject)]


def workbook(path: Path, lines: list[list[str]]) -> Path:
    """A workbook as spreadsheets write it: the first column in the shared strings, the rest in the cells."""
    shared = "".join(f"<si><t>{line[0]}</t></si>" for line in lines)
    rows = ""
    for number, line in enumerate(lines, 1):
        cells = f'<c r="A{number}" t="s"><v>{number - 1}</v></c>'
        for letter, value in zip("BCD", line[1:], strict=False):
            if value:  # empty cells are left out
                cells += f'<c r="{letter}{number}" t="inlineStr"><is><t>{value}</t></is></c>'
        rows += f'<row r="{number}">{cells}</row>'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="{SHEET}">{shared}</sst>')
        sheet = f'<worksheet xmlns="{SHEET}"><sheetData>{rows}</sheetData></worksheet>'
        archive.writestr("xl/worksheets/sheet1.xml", sheet)
    return path


@pytest.mark.parametrize(
    ("stem", "found"),
    [
        ("person78_bacteria_378", ("person78_bacteria", "bacterial_pneumonia")),
        ("person78_virus_140", ("person78_virus", "viral_pneumonia")),
        ("IM-0006-0001", ("IM-0006", "normal")),
        ("NORMAL2-IM-0381-0001-0002", ("NORMAL2-IM-0381", "normal")),
        ("BACTERIA-1008087-0001", ("BACTERIA-1008087", "bacterial_pneumonia")),
        ("00000001_000", None),
    ],
)
def test_kermanys_names(stem: str, found: tuple[str, str] | None) -> None:
    assert named(stem) == found


@pytest.mark.parametrize("parts", [("",), ("train", "val", "test")])
def test_kermany_in_both_layouts(tmp_path: Path, parts: tuple[str, ...]) -> None:
    root = tmp_path / "kermany"
    for number, part in enumerate(parts):
        top = root / "chest_xray" / part
        write_png(top / "NORMAL" / f"IM-000{number}-0001.jpeg", picture(number))
        write_png(top / "PNEUMONIA" / f"person{number}_bacteria_1.jpeg", picture(10 + number))
        write_png(top / "PNEUMONIA" / f"person{number}_virus_2.jpeg", picture(20 + number))
        write_png(top / "PNEUMONIA" / f"scan-{number}.jpeg", picture(30 + number))
    rows, rejects = listed("kermany", root)
    assert not rejects
    assert len(rows) == 4 * len(parts)
    labels = [rows[name].label for name in ("IM-0000-0001", "person0_bacteria_1", "person0_virus_2", "scan-0")]
    assert labels == ["normal", "bacterial_pneumonia", "viral_pneumonia", "pneumonia"]
    assert rows["person0_bacteria_1"].patient != rows["person0_virus_2"].patient
    assert (rows["scan-0"].patient, rows["scan-0"].age) == (None, None)
    splits = {row.official_split for row in rows.values()}
    assert splits == ({None} if parts == ("",) else {"train", "tune", "test"})


def radiography_db(root: Path) -> Path:
    top = root / "COVID-19_Radiography_Dataset"
    for seed, name in enumerate(("COVID", "Normal", "Viral Pneumonia", "Lung_Opacity")):
        write_png(top / name / "images" / f"{name}-1.png", picture(seed, 60, 60))
        mask = np.zeros((30, 30), np.uint8)
        mask[5:25, 5:25] = 255
        write_png(top / name / "masks" / f"{name}-1.png", mask)
    write_png(top / "Normal" / "images" / "Normal-2.png", picture(9, 60, 60))
    header = ["FILE NAME", "FORMAT", "SIZE", "URL"]
    kaggle = "https://www.kaggle.com/"
    workbook(
        top / "Normal.metadata.xlsx",
        [
            header,
            ["NORMAL-1", "PNG", "256*256", f"{kaggle}paultimothymooney/chest-xray-pneumonia"],
            ["NORMAL-2", "PNG", "", f"{kaggle}c/rsna-pneumonia-detection-challenge/data"],
        ],
    )
    workbook(top / "COVID.metadata.xlsx", [header, ["COVID-1", "PNG", "", "https://elsewhere.example"]])
    return root


def test_radiography_db_masks_are_brought_to_the_picture(tmp_path: Path) -> None:
    root = radiography_db(tmp_path / "radiography_db")
    rows, rejects = listed("radiography_db", root)
    assert not rejects
    assert {name: row.label for name, row in rows.items()} == {
        "COVID-1": "covid19", "Normal-1": "normal", "Normal-2": "normal",
        "Viral Pneumonia-1": "viral_pneumonia", "Lung_Opacity-1": "pneumonia",
    }  # fmt: skip
    sites = {name: row.site for name, row in rows.items() if row.site}
    assert sites == {"Normal-1": "kermany", "Normal-2": "nih"}
    assert rows["Normal-2"].lung_mask == ()
    lungs = read_mask(rows["COVID-1"].lung_mask, (60, 60))
    assert lungs[10:50, 10:50].all()
    assert lungs.sum() == 40 * 40
    ingest("radiography_db", root, tmp_path / "out", id_key="key", workers=1)
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert manifest["lung_mask"].notna().sum() == 4
    assert len(pd.read_csv(tmp_path / "out" / "rejects.csv")) == 0


def test_a_mask_of_another_resolution_must_say_so(tmp_path: Path) -> None:
    path = write_png(tmp_path / "mask.png", np.full((4, 4), 255, np.uint8))
    reference = mask_reference(path, resized=True)
    assert parse_mask_reference(reference) == (path, None)
    assert read_mask([reference], (8, 6)).all()
    with pytest.raises(Unreadable, match="mask_size"):
        read_mask([str(path)], (8, 6))
    with pytest.raises(Unreadable, match="for pictures only"):
        read_mask([reference], (3, 8, 6))


def test_a_workbook_is_read_by_its_columns_or_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", [["name", "b", "c"], ["x", "", "3"], ["y", "2"]])
    assert read_sheet(path) == [{"name": "x", "b": "", "c": "3"}, {"name": "y", "b": "2", "c": ""}]
    path.write_text("not a zip")
    with pytest.raises(DataError, match=r"not a readable \.xlsx workbook"):
        read_sheet(path)


def test_v7_keeps_frontal_xrays_and_takes_patients_from_original_names(tmp_path: Path) -> None:
    root = tmp_path / "v7"
    cases = {
        "11": ("person7_virus_9.jpeg", ["Viral Pneumonia", "View/AP", "Lung"]),
        "12": ("case-a.jpg", ["COVID-19", "Viral Pneumonia", "View/PA", "Sex/F", "Age/61", "Lung"]),
        "13": ("case-b.jpg", ["COVID-19", "CT", "View/Axial"]),
        "14": ("case-c.jpg", ["COVID-19", "View/Lateral"]),
        "15": ("IM-0001-0001.jpeg", ["No Pneumonia (healthy)"]),
    }
    for number, (original, tags) in cases.items():
        annotations = [{"name": tag, "tag": {}} for tag in tags]
        about = {"filename": f"000{number}.png", "original_filename": original, "width": 48, "height": 40}
        path = root / "annotations" / "all-images" / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"annotations": annotations, "image": about}))
        if number != "15":
            write_png(root / "images" / f"000{number}.png", picture(int(number)))
    lungs = np.zeros((40, 48), np.uint8)
    lungs[4:30, 4:20], lungs[10:14, 5:9] = 255, 127
    write_png(root / v7.MASKS / "12.png", lungs)
    cohen_metadata(root / "metadata.csv", ["P3,F,61,COVID-19,PA,X-ray,case-a.jpg,CC BY 4.0,"])
    rows, rejects = listed("v7", root)
    assert [(reject.reason, reject.detail) for reject in rejects[:2]] == [
        ("wrong_modality", "a CT slice"),
        ("wrong_modality", "a lateral view"),
    ]
    assert rejects[2].reason == "missing_file"
    child, adult = rows["11"], rows["12"]
    assert (child.label, child.patient, child.site, child.view) == ("viral_pneumonia", "person7_virus", "kermany", "AP")
    assert (adult.label, adult.patient, adult.patient_source, adult.age) == ("covid19", "P3", "cohen", 61.0)
    assert read_mask(adult.lung_mask, (40, 48)).sum() == 26 * 16
    # A withdrawn patient's annotation goes too: it holds the picture's original name.
    ingest("v7", root, tmp_path / "out", id_key="key", workers=1)
    patient = pd.read_parquet(tmp_path / "out" / "manifest.parquet").set_index("label").loc["covid19", "patient_id"]
    for holding in find(patient, tmp_path, "key"):
        remove(holding, patient, "key")
    assert not (root / "annotations" / "all-images" / "12.json").exists()
    assert (root / "annotations" / "all-images" / "11.json").exists()


@pytest.mark.parametrize(
    ("tags", "label"),
    [
        ({"COVID-19", "Viral Pneumonia", "ARDS"}, "covid19"),
        ({"Pneumonia", "Undefined Pneumonia"}, "pneumonia"),
        ({"Pneumonia", "Klebsiella"}, "bacterial_pneumonia"),
        ({"ARDS", "Influenza"}, "viral_pneumonia"),
        ({"Bacterial Pneumonia", "Viral Pneumonia"}, None),
        ({"No Finding", "No Pneumonia (healthy)"}, "normal"),
        ({"Lung", "Survival/Y"}, None),
    ],
)
def test_v7_tags_give_one_label_or_none(tags: set[str], label: str | None) -> None:
    assert v7.label_of(tags) == label


@pytest.mark.parametrize("below", ["", "data"])
def test_brixia_scores_reach_the_manifest(tmp_path: Path, below: str) -> None:
    root, top = tmp_path / "brixia", tmp_path / "brixia" / below
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        write_png(top / "public-cohen-subset" / name, picture(seed))
    (top / "public-annotations.csv").write_text(
        "filename,S-A,S-B,S-C,S-D,S-E,S-F,S-Global,J-A,J-B,J-C,J-D,J-E,J-F,J-Global\n"
        "a.png,3,3,3,3,3,3,18,2,3,3,3,3,3,17\nb.png,0,0,0,0,0,0,0,0,0,0,0,0,0,0\n"
        "c.png,,,,,,,99,,,,,,,\ngone.png,1,1,1,1,1,1,6,1,1,1,1,1,1,6\n"
    )
    cohen_metadata(root / "metadata.csv", ["4,M,30,COVID-19,AP,X-ray,a.jpg,CC BY 4.0,"])
    rows, rejects = listed("brixia", root)
    assert [reject.reason for reject in rejects] == ["missing_file"]
    assert {name: row.severity for name, row in rows.items()} == {"a": 18.0, "b": 0.0, "c": None}
    assert (rows["a"].label, rows["a"].patient, rows["b"].label) == ("covid19", "4", None)
    ingest("brixia", root, tmp_path / "out", id_key="key", workers=1)
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert sorted(manifest["severity"].dropna()) == [0.0, 18.0]
    assert not manifest["commercial_use"].any()  # the scores allow none
