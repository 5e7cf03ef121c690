"""Sets with boxes in the layouts of their sources, and what becomes of a box: a place to look, and no outline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from chestflow.config import Segment
from chestflow.data import pack_building
from chestflow.data.ingest import ingest
from chestflow.data.packs import Pack
from chestflow.data.sources.base import Reject, Row, read_rows
from chestflow.data.sources.nih import label_of
from chestflow.errors import DataError
from chestflow.segmentation import masks, places
from chestflow.segmentation.run import segment
from chestflow.training.loader import Reader
from tests.code.image_files import picture, write_dicom, write_png

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
NO_ROLES = pd.DataFrame({"cohort": [], "fold": [], "image_id": [], "role": []})


def nih(root: Path) -> Path:
    """NIH's layout as Kaggle packs it, with four pictures of three patients, and one that is listed and not there."""
    lines = [
        "00000001_000.png,Cardiomegaly|Effusion,0,1,058Y,M,PA,2682,2749,0.143,0.143,",
        "00000001_001.png,Pneumonia|Infiltration,1,1,58,M,AP,2682,2749,0.143,0.143,",
        "00000002_000.png,No Finding,0,2,414,F,PA,2500,2048,0.171,0.171,",
        "00000003_000.png,Pneumonia,0,3,7,F,AP,2500,2048,0.171,0.171,",
        "00000009_000.png,Hernia,0,9,80,F,PA,2500,2048,0.171,0.171,",
    ]
    root.mkdir(parents=True)
    (root / "Data_Entry_2017.csv").write_text(NIH_HEADER + "".join(f"{line}\n" for line in lines))
    boxes = [
        "00000001_000.png,Cardiomegaly,4.0,5.0,6.0,7.0,,,",
        "00000001_001.png,Pneumonia,10.0,4.0,12.0,6.0,,,",
        "00000001_001.png,Infiltrate,1.0,1.0,3.0,3.0,,,",
        "00000003_000.png,Pneumonia,40.0,30.0,30.0,4.0,,,",
    ]
    (root / "BBox_List_2017.csv").write_text(BOX_HEADER + "".join(f"{line}\n" for line in boxes))
    (root / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n")
    (root / "test_list.txt").write_text("00000002_000.png\n00000003_000.png\n")
    for seed, (folder, name) in enumerate(
        [("images_001", "00000001_000"), ("images_001", "00000001_001"), ("images_002", "00000002_000")]
    ):
        write_png(root / folder / "images" / f"{name}.png", picture(seed))
    write_png(root / "images_002" / "images" / "00000003_000.png", picture(9))
    return root


def rsna(root: Path) -> Path:
    """RSNA's layout with a picture of each class; the ill one has two boxes."""
    for seed, name in enumerate(("aa", "bb", "cc")):
        write_dicom(root / "stage_2_train_images" / f"{name}.dcm", picture(20 + seed), ViewPosition="AP")
    (root / "stage_2_train_labels.csv").write_text(
        "patientId,x,y,width,height,Target\naa,,,,,0\nbb,3.0,4.0,10.0,12.0,1\nbb,20.0,8.0,9.0,20.0,1\ncc,,,,,0\ndd,,,,,0\n"
    )
    (root / "stage_2_detailed_class_info.csv").write_text(
        "patientId,class\naa,No Lung Opacity / Not Normal\nbb,Lung Opacity\nbb,Lung Opacity\ncc,Normal\ndd,Normal\n"
    )
    return root


def listed(name: str, root: Path) -> tuple[dict[str, Row], list[Reject]]:
    found = list(read_rows(name, root))
    rows = {Path(row.key).stem: row for row in found if isinstance(row, Row)}
    return rows, [row for row in found if isinstance(row, Reject)]


def test_nih_rows(tmp_path: Path) -> None:
    rows, rejects = listed("nih", nih(tmp_path / "nih"))
    assert [reject.reason for reject in rejects] == ["missing_file"]
    ill, well, child = rows["00000001_001"], rows["00000002_000"], rows["00000003_000"]
    assert (ill.label, well.label, rows["00000001_000"].label) == ("pneumonia", "normal", "non_covid")
    assert (ill.patient, ill.view, ill.sex, ill.age, ill.site) == ("00000001", "AP", "M", 58.0, "nih")
    assert (rows["00000001_000"].age, well.age, child.age) == (58.0, None, 7.0)  # 058Y, and 414 is nobody's age
    # A box around the heart is no infection, and one of an infiltrate is not said to be.
    assert rows["00000001_000"].boxes is None
    assert ill.boxes == ((10.0, 4.0, 12.0, 6.0),)
    assert (ill.official_split, well.official_split) == ("train", "test")


@pytest.mark.parametrize(
    ("findings", "label"),
    [("No Finding", "normal"), ("Mass|Pneumonia", "pneumonia"), ("Edema", "non_covid"), ("", None)],
)
def test_nih_labels(findings: str, label: str | None) -> None:
    assert label_of(findings) == label


def test_the_newer_table_goes_first_and_a_broken_box_is_said(tmp_path: Path) -> None:
    root = nih(tmp_path / "nih")
    (root / "Data_Entry_2017_v2020.csv").write_text(NIH_HEADER + "00000002_000.png,Mass,0,2,50,F,PA,1,1,1,1,\n")
    rows, _ = listed("nih", root)
    assert {name: row.label for name, row in rows.items()} == {"00000002_000": "non_covid"}
    (root / "BBox_List_2017.csv").write_text(BOX_HEADER + "00000002_000.png,Pneumonia,a,b,c,d,,,\n")
    with pytest.raises(DataError, match="is not four numbers"):
        listed("nih", root)


def test_rsna_rows_with_and_without_nihs_patients(tmp_path: Path) -> None:
    root = rsna(tmp_path / "rsna")
    rows, rejects = listed("rsna", root)
    assert {name: row.label for name, row in rows.items()} == {"aa": "non_covid", "bb": "pneumonia", "cc": "normal"}
    assert rows["bb"].boxes == ((3.0, 4.0, 10.0, 12.0), (20.0, 8.0, 9.0, 20.0))
    assert rows["aa"].boxes is None
    assert [(row.patient, row.patient_source) for row in rows.values()] == [("aa", None), ("bb", None), ("cc", None)]
    assert [reject.key for reject in rejects] == ["stage_2_train_images/dd.dcm"]
    mapping = [
        {"subset_img_id": "aa", "img_id": "00000001_000.png"},
        {"subset_img_id": "bb", "img_id": "00000001_007.png"},
    ]
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(mapping))
    rows, _ = listed("rsna", root)
    assert rows["aa"].patient == rows["bb"].patient == "00000001"
    assert (rows["aa"].patient_source, rows["cc"].patient_source) == ("nih", None)
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text('[{"other": 1}]')
    with pytest.raises(DataError, match="does not map the pictures"):
        listed("rsna", root)


def test_ingest_keeps_boxes_and_refuses_those_beyond_the_picture(tmp_path: Path) -> None:
    ingest("nih", nih(tmp_path / "nih"), tmp_path / "out", id_key="key", workers=1)
    manifest = pd.read_parquet(tmp_path / "out" / "manifest.parquet").set_index("sex")
    rejects = pd.read_csv(tmp_path / "out" / "rejects.csv")
    assert [list(box) for box in manifest.loc["M", "boxes"].dropna().iloc[0]] == [[10.0, 4.0, 12.0, 6.0]]
    assert manifest.loc["F", "boxes"].isna().all()
    assert sorted(rejects["reason"]) == ["mask_size", "missing_file"]
    assert "30 x 4 at (40, 30) in a picture of 48 x 40" in " ".join(rejects["detail"])


@pytest.mark.parametrize(
    ("boxes", "first", "last", "pixels"),
    [
        ([(2, 1, 4, 3)], (1, 2), (3, 5), 12),  # whole numbers: width times height
        ([(2.4, 1.4, 4, 3)], (1, 2), (3, 5), 12),  # the same centres
        ([(-3, -2, 5, 4), (0, 0, 2, 2)], (0, 0), (1, 1), 4),  # cut off at the edge, and twice is once
        ([(8, 5, 9, 9)], (5, 8), (5, 9), 2),
    ],
)
def test_a_box_holds_the_pixels_whose_centres_lie_in_it(
    boxes: list, first: tuple[int, int], last: tuple[int, int], pixels: int
) -> None:
    inside = masks.from_boxes(boxes, (6, 10))
    rows, columns = np.nonzero(inside)
    assert ((rows.min(), columns.min()), (rows.max(), columns.max())) == (first, last)
    assert inside.sum() == pixels


@pytest.fixture
def segmented(tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    """Three pictures with lungs: one with a box, one with a lesion mask and a box, one with neither."""
    lungs = np.zeros((40, 48), np.uint8)
    lungs[5:35, 6:42] = 255
    lesion = np.zeros_like(lungs)
    lesion[10:20, 10:20] = 255
    rows = []
    for name, boxes, mask in (
        ("box", [[20.0, 30.0, 10.0, 8.0]], None),
        ("both", [[0.0, 0.0, 4.0, 4.0]], lesion),
        ("no", None, None),
    ):
        row = {"image_id": f"s-{name}", "source": "s", "modality": "cxr", "boxes": boxes}
        row["path"] = str(write_png(tmp_path / f"{name}.png", picture(len(rows))))
        row["lung_mask"] = [str(write_png(tmp_path / "lungs.png", lungs))]
        row["infection_mask"] = None if mask is None else [str(write_png(tmp_path / "lesion.png", mask))]
        rows.append(row)
    from chestflow.data.manifest import conform

    manifest = conform(pd.DataFrame(rows))
    manifest.to_parquet(tmp_path / "manifest.parquet")
    manifest = pd.read_parquet(tmp_path / "manifest.parquet")  # lists come back as arrays
    groups = manifest[["image_id"]].assign(group_id=manifest["image_id"])
    segment("cxr", manifest, NO_ROLES, groups, Segment(), tmp_path, seed=1, threads=1, workers=1)
    return tmp_path, manifest


def test_a_box_is_in_the_mask_and_in_no_figure(segmented: tuple[Path, pd.DataFrame]) -> None:
    out, _ = segmented
    ratio = places.ratios(out, "cxr").set_index("image_id")
    assert ratio["infection_from"].to_dict() == {"s-both": "source", "s-box": "boxes", "s-no": "none"}
    assert ratio["outlined"].to_dict() == {"s-both": True, "s-box": False, "s-no": False}
    assert ratio["has_infection"].to_dict() == {"s-both": True, "s-box": False, "s-no": False}
    assert ratio["ratio"].notna().to_dict() == {"s-both": True, "s-box": False, "s-no": False}
    path = masks.find(places.masks(out, "cxr"), "s-box")
    assert path is not None
    bits = masks.read(path)
    assert bits.shape == (40, 48)  # the original grid
    rows, columns = np.nonzero(bits & masks.INFECTION)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 37, 20, 29)
    assert not (bits & masks.OUTLINED).any()
    # The box sticks out of the lungs below, and the lungs stay as they were drawn.
    assert ((bits & masks.LUNG) > 0).sum() == 30 * 36
    both = masks.find(places.masks(out, "cxr"), "s-both")
    assert both is not None
    assert ((masks.read(both) & masks.INFECTION) > 0).sum() == 100  # the outline alone


def test_training_never_sees_a_box(segmented: tuple[Path, pd.DataFrame]) -> None:
    out, manifest = segmented
    recipe = {"modality": "cxr", "size": [20, 24], "clahe": None, "keep": "all", "keep_aspect": False}
    pack_building.build(manifest, recipe, places.masks(out, "cxr"), out / "pack", workers=1)
    pack = Pack.open(out / "pack")
    index = pack.index.set_index("image_id")
    assert (pack.masks[int(index.loc["s-box", "row"])] & masks.INFECTION).any()
    table = pd.DataFrame({"row": index.loc[["s-box", "s-both"], "row"], "target": [0, 1], "ratio": [np.nan, 0.1]})
    reader = Reader(pack, table, torch.device("cpu"))
    batch = reader.finish(reader.read([0, 1]))
    assert batch.has_infection.tolist() == [False, True]
    assert batch.infection is not None
    assert batch.infection.sum(dim=(1, 2, 3)).tolist()[0] == 0
    assert batch.infection.sum(dim=(1, 2, 3)).tolist()[1] > 0
