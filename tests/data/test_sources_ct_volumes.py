"""CT volumes: COVID-CT-MD's labels, MosMedData, CC-CCII and COVID-19-CT-Seg, in miniature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestflow.data.ct_collections import volume_named
from chestflow.data.ingest import ingest
from chestflow.data.manifest import LOBES
from chestflow.data.recipes import apply
from chestflow.data.sources.base import Reject, Row, read_rows
from chestflow.errors import DataError
from chestflow.imaging.read import read_classes, read_mask, read_volume
from tests.code.image_files import chest, write_png, write_series
from tests.data.ct_sets import ct, grey_scan, jpeg, lesions, nifti


def listed(name: str, root: Path) -> tuple[dict[str, Row], list[Reject]]:
    found = list(read_rows(name, root))
    return {row.key: row for row in found if isinstance(row, Row)}, [row for row in found if isinstance(row, Reject)]


def manifest_of(name: str, root: Path, out: Path) -> pd.DataFrame:
    ingest(name, root, out, id_key="key", workers=1)
    return pd.read_parquet(out / "manifest.parquet")


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("coronacases_org_001", ("coronacases", "001", "coronacases_001")),
        ("coronacases_org_case010", ("coronacases", "010", "coronacases_010")),
        ("case009", ("coronacases", "009", "coronacases_009")),
        ("radiopaedia_10_85902_3", ("radiopaedia", "10", "radiopaedia_10_85902_3")),
        ("radiopaedia_org_covid-19-pneumonia-10_85902_3-dcm", ("radiopaedia", "10", "radiopaedia_10_85902_3")),
        ("study_0255", None),
    ],
)
def test_volumes_of_the_collections_have_one_name(stem: str, expected: tuple[str, str, str] | None) -> None:
    found = volume_named(stem)
    assert (found and (found.collection, found.patient, found.name)) == expected


def covid_ct_md(root: Path, rows_of_arrays: int = 4, depth: int = 5) -> Path:
    """P001 to P003 and cap001; the index passes over number 2, so that arrays have 5 rows or 4."""
    for folder in ("COVID-19 subjects/P001", "COVID-19 subjects/P002", "COVID-19 subjects/P003", "Cap subjects/cap001"):
        write_series(root / folder, chest(depth))
    write_series(root / "Normal subjects/normal001", chest(depth))
    lines = ["0,COVID-19,./COVID-19/,P001", "1,COVID-19,./COVID-19/,P002", "3,COVID-19,./COVID-19/,P003"]
    (root / "Index.csv").write_text(
        "\n".join(["Label Index,Diagnosis,Relative Path,Folder/ID", *lines, "4,CAP,./CAP/,cap001"])
    )
    slices, lobes = np.zeros((rows_of_arrays, 8), np.uint8), np.zeros((rows_of_arrays, 8, 5), np.uint8)
    slices[0, [1, 3]] = 1
    lobes[0, 1, 0] = lobes[0, 3, 4] = 1
    slices[1, 7] = 1  # beyond the 5 slices that are there
    slices[-2, 2] = 1  # P003, by number or by line
    np.save(root / "Slice-level-labels.npy", slices)
    np.save(root / "Lobe-level-labels.npy", lobes)
    return root


@pytest.mark.parametrize("rows_of_arrays", [4, 5])
def test_covid_ct_md_slice_and_lobe_labels(tmp_path: Path, rows_of_arrays: int) -> None:
    root = covid_ct_md(tmp_path / "covid_ct_md", rows_of_arrays)
    rows, _ = listed("covid_ct_md", root)
    first = rows["COVID-19 subjects/P001"]
    assert (first.infected_slices, first.infected_lobes) == ((1, 3), ("LLL", "RUL"))
    assert rows["COVID-19 subjects/P002"].infected_slices is None  # fewer slices than the labels reach
    assert rows["COVID-19 subjects/P003"].infected_slices == (2,)
    assert rows["COVID-19 subjects/P003"].infected_lobes == ()
    assert rows["Cap subjects/cap001"].infected_slices == ()
    assert rows["Normal subjects/normal001"].infected_slices is None  # nobody labelled its slices
    assert set(first.infected_lobes or ()) <= set(LOBES)
    table = manifest_of("covid_ct_md", root, tmp_path / "out")
    kept = table.loc[table["label"] == "covid19", "infected_slices"].dropna().map(list)
    assert sorted(kept) == [[1, 3], [2]]


def test_covid_ct_md_labels_that_do_not_belong_together(tmp_path: Path) -> None:
    root = covid_ct_md(tmp_path / "covid_ct_md")
    np.save(root / "Slice-level-labels.npy", np.zeros((2, 8)))
    with pytest.raises(DataError, match=r"has 2 rows, Index\.csv 4 lines"):
        listed("covid_ct_md", root)
    np.save(root / "Slice-level-labels.npy", np.zeros(8))
    with pytest.raises(DataError, match="has the shape"):
        listed("covid_ct_md", root)
    (root / "Slice-level-labels.npy").write_text("no array")
    with pytest.raises(DataError, match="not a readable NumPy array"):
        listed("covid_ct_md", root)


def test_mosmed_categories_masks_and_registry(tmp_path: Path) -> None:
    root = tmp_path / "mosmed"
    top = root / "COVID19_1110"
    for shift, (category, number) in enumerate((("CT-0", 1), ("CT-1", 255), ("CT-1", 256), ("CT-4", 1109))):
        nifti(top / f"studies/{category}/study_{number:04d}.nii.gz", ct(shift))
    nifti(top / "masks/study_0255_mask.nii.gz", (ct() > 0).astype(np.uint8))
    nifti(top / "masks/study_0999_mask.nii.gz", np.ones((5, 12, 10), np.uint8))
    lines = [
        "study_id,category,study_file,mask_file",
        "study_0001,CT-0,/studies/CT-0/study_0001.nii.gz,",
        "study_0255,CT-1,/studies/CT-1/study_0255.nii.gz,/masks/study_0255_mask.nii.gz",
        "study_0256,CT-2,/studies/CT-1/study_0256.nii.gz,",
        "study_0300,CT-1,/studies/CT-1/study_0300.nii.gz,",
    ]
    (top / "dataset_registry.csv").write_text("\n".join(lines))
    rows, rejects = listed("mosmed", root)
    labels = {key.split("/")[-1][:10]: row.label for key, row in rows.items()}
    assert labels == {"study_0001": "normal", "study_0255": "covid19", "study_0256": None, "study_1109": "covid19"}
    assert sorted((reject.reason, reject.key.split("/")[-1]) for reject in rejects) == [
        ("missing_file", "study_0300.nii.gz"),
        ("missing_file", "study_0999"),
    ]
    masked = next(row for row in rows.values() if row.infection_mask)
    assert (read_mask(masked.infection_mask, (5, 12, 10)) == (ct() > 0)).all()
    assert masked.patient == "study_0255"


def cc_ccii(root: Path) -> Path:
    grey_scan(root / "NCP/1/1001", start=10)
    grey_scan(root / "NCP/1/1002", depth=5, skip=(2,))
    grey_scan(root / "NCP/2/1003", depth=3)
    grey_scan(root / "CP/7/2001")
    jpeg(root / "CP/7/2001/0004.jpg", np.full((12, 10), 30, np.uint8))
    (root / "Normal").mkdir()
    (root / "unzip_filenames.csv").write_text(
        "zip_file,patient_id,scan_id,n_slice,label\nNCP-1.zip,1,1001,4,NCP\nNCP-1.zip,2,1003,9,NCP\nCP-1.zip,8,2009,4,CP\n"
    )
    (root / "lesions_slices.csv").write_text("imgpath\nNCP/1/1001/0010.png\nNCP/1/1001/0012.png\n")
    jpeg(root / "ct_lesion_seg/image/5/30.jpg", np.full((40, 48), 90, np.uint8))
    # Their values: 1 lung, 2 ground glass, 3 consolidation.
    write_png(root / "ct_lesion_seg/mask/5/30.png", lesions())
    write_png(root / "ct_lesion_seg/mask/5/31.png", lesions())
    return root


def test_cc_ccii_scans_of_grey_slices(tmp_path: Path) -> None:
    root = cc_ccii(tmp_path / "cc_ccii")
    rows, rejects = listed("cc_ccii", root)
    assert sorted((reject.reason, reject.key) for reject in rejects) == [
        ("missing_file", "CP/8/2009"),
        ("missing_file", "ct_lesion_seg/image/5/31"),
        ("missing_slices", "NCP/1/1002"),
        ("missing_slices", "NCP/2/1003"),
    ]
    scan = rows["NCP/1/1001"]
    assert (scan.label, scan.patient, rows["CP/7/2001"].label) == ("covid19", "1", "pneumonia")
    volume = read_volume(scan.reference)
    # Slice 0 is the feet's: the last number. Grey 80 to 200 of the window of paper 004.
    assert volume.hu[:, -1, -1].tolist() == [round(-1350 + grey * 1500 / 255) for grey in (80, 120, 160, 200)]
    assert volume.hu.min() == -1350
    assert (volume.color_mode, volume.bits, volume.file_format, volume.spacing_stated) == ("L", 8, "png", False)
    assert scan.infected_slices == (1, 3)  # 0012 and 0010, counted from the feet
    assert rows["CP/7/2001"].infected_slices is None
    segmented = rows["ct_lesion_seg/image/5/30.jpg"]
    classes = read_classes(segmented.infection_mask, (40, 48))
    assert classes is not None
    assert (classes == np.array([0, 0, 1, 2], np.uint8)[lesions()]).all()
    assert (read_mask(segmented.lung_mask, (40, 48)) == (lesions() > 0)).all()


def test_cc_ccii_in_the_manifest(tmp_path: Path) -> None:
    table = manifest_of("cc_ccii", cc_ccii(tmp_path / "cc_ccii"), tmp_path / "out")
    volumes = table[table["modality"] == "ct_volume"]
    assert set(volumes["color_mode"]) == {"L"}
    assert volumes["spacing_mm"].isna().all()  # assumed for resampling, and so not stated here
    assert volumes["path"].str.endswith("@window=-1350,150").all()
    assert volumes["sha256"].nunique() == len(volumes) == 2
    assert read_volume(Path(volumes["path"].iloc[0])).hu.ndim == 3


def test_grey_scans_of_any_depth_are_packed_whole(tmp_path: Path) -> None:
    recipe = {
        "modality": "ct_volume",
        "size": [16, 24, 24],
        "spacing_mm": [1.25, 0.7168, 0.7168],
        "max_downscale": 1.0,
        "keep_aspect": True,
        "clahe": None,
    }
    kept = set()
    for depth in (2, 5):
        volume = read_volume(Path(f"{grey_scan(tmp_path / str(depth), depth)}@window=-1350,150"))
        data, masks, geometry = apply(volume, None, recipe)
        assert (data.shape, masks) == ((16, 24, 24), None)
        kept.add(tuple(int(geometry[f"content_{side}"]) for side in ("depth", "height", "width")))
    assert len(kept) == 1  # the assumed extent, and not the number of slices, decides


def test_covid19_ct_seg_names_masks_and_window(tmp_path: Path) -> None:
    root = tmp_path / "covid19_ct_seg"
    grey = (np.arange(600).reshape(5, 12, 10) % 256).astype(np.uint8)
    masks = np.zeros((5, 12, 10), np.uint8)
    masks[:, 2:6, 2:5], masks[:, 2:6, 5:8], masks[2, 3:5, 3:5] = 1, 2, 3
    nifti(root / "COVID-19-CT-Seg_20cases/coronacases_001.nii.gz", ct())
    nifti(root / "COVID-19-CT-Seg_20cases/radiopaedia_org_covid-19-pneumonia-29_86490_1-dcm.nii", grey)
    nifti(root / "COVID-19-CT-Seg_20cases/radiopaedia_29_86491_1.nii.gz", grey)
    for name in ("coronacases_001", "radiopaedia_29_86490_1", "coronacases_099"):
        nifti(root / f"Lung_and_Infection_Mask/{name}.nii.gz", masks)
    nifti(root / "Infection_Mask/coronacases_001.nii.gz", np.zeros((5, 12, 10), np.uint8))
    rows, rejects = listed("covid19_ct_seg", root)
    assert [reject.reason for reject in rejects] == ["missing_file"]
    corona, *other = sorted(rows.values(), key=lambda row: (row.patient_source or "", row.study or ""))
    assert [row.patient for row in other] == ["29", "29"]  # two studies of one case
    assert read_volume(corona.reference).color_mode == "HU"
    assert not read_mask(corona.infection_mask, (5, 12, 10)).any()  # its own mask goes before the one of both
    first = read_volume(other[0].reference)
    assert (first.hu == np.rint(-1250 + grey * (1500 / 255))).all()
    assert (first.color_mode, first.spacing_stated) == ("L", True)
    assert (read_mask(other[0].infection_mask, (5, 12, 10)) == (masks == 3)).all()
    assert (read_mask(other[0].lung_mask, (5, 12, 10)) == (masks > 0)).all()
    assert other[1].infection_mask == ()
    assert {row.label for row in rows.values()} == {None}
