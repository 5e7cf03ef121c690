"""CT slices: COVID-CT, COVID-SemiSeg, SARS-CoV-2 CT and MedSeg's stacks, in miniature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestflow.config import Cohort, Split, Task, Validation
from chestflow.data.findings import Dataset, Finding
from chestflow.data.identity import keyed_id
from chestflow.data.ingest import ingest
from chestflow.data.references import LESIONS
from chestflow.data.sources.base import Reject, Row, read_rows
from chestflow.data.splits import make_splits
from chestflow.data.validation import infos, run_rules, twins
from chestflow.data.withdrawal import find, remove
from chestflow.errors import DataError
from chestflow.imaging.read import read_classes, read_mask, read_radiograph
from tests.code.image_files import picture, write_png
from tests.data.ct_sets import covid_ct, jpeg, lesions, nifti, palette


def listed(name: str, root: Path) -> tuple[list[Row], list[Reject]]:
    found = list(read_rows(name, root))
    return [row for row in found if isinstance(row, Row)], [row for row in found if isinstance(row, Reject)]


def manifest_of(name: str, root: Path, out: Path) -> pd.DataFrame:
    ingest(name, root, out, id_key="key", workers=1)
    return pd.read_parquet(out / "manifest.parquet")


def findings(table: pd.DataFrame) -> dict[str, Finding]:
    """What validation says of a set of COVID-19 and other slices."""
    sets = sorted(set(table["source"]))
    data = Dataset(
        manifest=table,
        rejects=pd.DataFrame({"source": [], "image_id": [], "reason": [], "detail": []}, dtype=str),
        cohorts={"slices": Cohort(sets=sets, modality="ct_slice")},
        tasks={"task": Task(cohort="slices", classes={"rest": ["non_covid"], "covid19": ["covid19"]})},
        settings=Validation(min_images_per_class=5),
        infos=infos(sets),
        twins=twins(table),
    )
    return {finding.rule: finding for finding in run_rules(data)}


def test_covid_ct_joins_lists_sheets_and_files_whatever_stands_for_the_underscore(tmp_path: Path) -> None:
    rows, rejects = listed("covid_ct", covid_ct(tmp_path / "covid_ct"))
    assert rejects == []
    assert len(rows) == 24
    table = pd.DataFrame({"label": [r.label for r in rows], "side": [r.official_split for r in rows]})
    assert table.groupby(["label", "side"]).size().to_dict() == {
        (label, side): 4 for label in ("covid19", "non_covid") for side in ("train", "tune", "test")
    }
    assert all(row.patient for row in rows)
    assert len({row.patient for row in rows}) == 6 + 12
    first = next(row for row in rows if row.key.endswith("p0_0.png"))
    second = next(row for row in rows if row.key.endswith("p1_1.png"))
    assert (first.age, first.sex, second.age, second.sex) == (41.0, "F", None, "M")  # 40+ is no age


def test_covid_ct_names_that_fit_nothing_or_two_files_are_rejects(tmp_path: Path) -> None:
    root = covid_ct(tmp_path / "covid_ct")
    write_png(root / "Images-processed/CT_NonCOVID/3%3.png", picture(5))
    file = root / "Data-split/NonCOVID/trainCT_NonCOVID.txt"
    file.write_text(file.read_text() + "absent.png\n0_0.png\n")
    rows, rejects = listed("covid_ct", root)
    assert sorted(reject.reason for reject in rejects) == ["listed_twice", "missing_file"]
    by_key = {row.key.split("/")[-1]: row for row in rows}
    assert by_key["3%3.png"].official_split == "train"  # the list's own spelling goes before the plain one
    assert by_key["3_3.png"].official_split is None


def test_covid_ct_without_its_test_lists_tests_on_val_and_says_so(tmp_path: Path) -> None:
    root = covid_ct(tmp_path / "covid_ct", test=False)
    rows, _ = listed("covid_ct", root)
    assert {row.official_split for row in rows} == {"train", "test"}
    found = findings(manifest_of("covid_ct", root, tmp_path / "out"))
    assert "train 12 of 425, tune 0 of 118, test 12 of 203" in found["official_split_is_another"].message


def test_covid_ct_colour_mode_tells_the_class_and_validation_says_so(tmp_path: Path) -> None:
    table = manifest_of("covid_ct", covid_ct(tmp_path / "covid_ct"), tmp_path / "out")
    jpegs = table[table["file_format"] == "jpeg"]
    assert len(jpegs) == 1  # by content: its name ends in .png
    assert set(table.loc[table["label"] == "non_covid", "color_mode"]) == {"L"}
    pixels = read_radiograph(Path(table.loc[table["color_mode"] == "RGBA", "path"].iloc[0])).pixels
    assert pixels.ndim == 2  # grey
    found = findings(table)
    assert "the colour mode alone" in found["class_follows_property"].message
    assert "have RGBA as the colour mode" in found["value_of_one_class"].message
    assert "labels_disagree" not in found


def test_covid_ct_label_conflicts_are_found(tmp_path: Path) -> None:
    root = covid_ct(tmp_path / "covid_ct")
    both = root / "Images-processed/CT_NonCOVID/both.png"
    jpeg(both, picture(1))  # a COVID-19 slice again, in another format and as the other class
    sheet = root / "NonCOVID-CT-MetaInfo.csv"
    sheet.write_text(sheet.read_text() + "99,both.png,Patient 3\n")
    found = findings(manifest_of("covid_ct", root, tmp_path / "out"))
    assert found["labels_disagree"].severity == "critical"
    assert found["labels_disagree"].figures["pairs"] == 1
    assert found["patients_in_two_classes"].figures == {"patients": 1}


def test_covid_ct_sheet_of_another_kind(tmp_path: Path) -> None:
    root = covid_ct(tmp_path / "covid_ct")
    (root / "COVID-CT-MetaInfo.csv").unlink()
    (root / "COVID-CT-MetaInfo.xlsx").write_text("no workbook")
    with pytest.raises(DataError, match=r"not a readable \.xlsx"):
        listed("covid_ct", root)
    (root / "COVID-CT-MetaInfo.xlsx").unlink()
    rows, _ = listed("covid_ct", root)
    assert all(row.patient is None for row in rows if row.label == "covid19")


def semiseg(root: Path) -> Path:
    top = root / "TrainingSet"
    for i in range(6):
        jpeg(top / f"LungInfection-Train/Doctor-label/Imgs/{i}.jpg", picture(500 + i))
        classes = np.minimum(lesions(), 2)
        write_png(top / f"LungInfection-Train/Doctor-label/GT/{i}.png", ((classes > 0) * 255).astype(np.uint8))
        palette(top / f"MultiClassInfection-Train/GT/{i}.png", classes)
    pseudo = top / "LungInfection-Train/Pseudo-label/Imgs"
    for i, volume in enumerate(("coronacases_org_001", "radiopaedia_org_covid-19-pneumonia-10_85902_1-dcm")):
        for place in range(5):
            jpeg(pseudo / f"Data-1_{volume}_{place}.jpg", picture(600 + 10 * i + place))
    jpeg(pseudo / "Data-1_radiopaedia_org_covid-19-pneumonia-10_85902_3-dcm_1.jpg", picture(650))
    return root


def test_semiseg_masks_by_class_and_slices_by_volume(tmp_path: Path) -> None:
    root = semiseg(tmp_path / "covid_semiseg")
    rows, rejects = listed("covid_semiseg", root)
    assert rejects == []
    masked = [row for row in rows if row.infection_mask]
    assert (len(masked), len(rows)) == (6, 17)
    assert {row.label for row in rows} == {None}
    wanted = np.minimum(lesions(), 2)
    classes = read_classes(masked[0].infection_mask, (40, 48))
    assert classes is not None
    assert (classes == wanted).all()
    assert (read_mask(masked[0].infection_mask, (40, 48)) == (wanted > 0)).all()
    patients = {(row.patient_source, row.patient) for row in rows if not row.infection_mask}
    assert patients == {("coronacases", "001"), ("radiopaedia", "10")}  # two series of one case are of one patient
    assert len({row.study for row in rows if not row.infection_mask}) == 3


def test_semiseg_without_masks_by_class_or_without_a_slice(tmp_path: Path) -> None:
    root = semiseg(tmp_path / "covid_semiseg")
    top = root / "TrainingSet"
    (top / "MultiClassInfection-Train/GT/0.png").unlink()
    (top / "LungInfection-Train/Doctor-label/Imgs/1.jpg").unlink()
    (top / "LungInfection-Train/Doctor-label/GT/2.png").unlink()
    rows, rejects = listed("covid_semiseg", root)
    assert [reject.reason for reject in rejects] == ["missing_file"]
    zero = next(row for row in rows if row.key.endswith("Imgs/0.jpg"))
    assert (read_mask(zero.infection_mask, (40, 48)) == (lesions() > 0)).all()
    assert read_classes(zero.infection_mask, (40, 48)) is None  # the binary mask tells no classes
    assert next(row for row in rows if row.key.endswith("Imgs/2.jpg")).infection_mask


def test_semiseg_takes_the_roles_of_masks_and_unlabelled(tmp_path: Path) -> None:
    first = manifest_of("covid_ct", covid_ct(tmp_path / "covid_ct", 30), tmp_path / "a")
    second = manifest_of("covid_semiseg", semiseg(tmp_path / "covid_semiseg"), tmp_path / "b")
    table = pd.concat([first, second], ignore_index=True)
    cohort = Cohort(sets=["covid_ct", "covid_semiseg"], modality="ct_slice")
    splits, _ = make_splits(table, {"c": cohort}, Split(k=3), seed=1)
    splits = splits.merge(table[["image_id", "source"]], on="image_id")
    roles = splits[splits["source"] == "covid_semiseg"].groupby(["fold", "role"]).size()
    assert roles.to_dict() == {(f, role): n for f in range(3) for role, n in (("masks_only", 6), ("unlabelled", 11))}
    assert {"train", "tune", "test"} <= set(splits.loc[splits["source"] == "covid_ct", "role"])


def test_sars_cov2_ct(tmp_path: Path) -> None:
    root = tmp_path / "sars_cov2_ct"
    write_png(root / "COVID/Covid (1).png", picture(1))
    write_png(root / "non-COVID/Non-Covid (1).png", picture(2))
    (root / "non-COVID/Thumbs.db").write_text("x")
    rows, _ = listed("sars_cov2_ct", root)
    assert [(row.label, row.patient, row.modality) for row in rows] == [
        ("covid19", None, "ct_slice"),
        ("non_covid", None, "ct_slice"),
    ]


def test_medicalsegmentation_reads_a_stack_slice_by_slice(tmp_path: Path) -> None:
    root = tmp_path / "medicalsegmentation"
    stack = np.stack([picture(i).astype(np.float64) * 5 - 1000 for i in range(3)])
    nifti(root / "tr_im.nii.gz", stack)
    classes = np.stack([lesions(), np.zeros((40, 48), np.uint8), lesions()])
    nifti(root / "tr_mask.nii.gz", classes)
    nifti(root / "val_im.nii.gz", stack[:1] + 3)
    volume = np.stack([lesions()] * 4).astype(np.int16) * 100 - 900
    nifti(root / "rp_im/1.nii.gz", volume)
    nifti(root / "rp_msk/1.nii.gz", np.stack([lesions()] * 4))
    nifti(root / "rp_lung_msk/1.nii.gz", np.ones((4, 40, 48), np.uint8))
    nifti(root / "rp_msk/2.nii.gz", np.ones((4, 40, 48), np.uint8))
    rows, rejects = listed("medicalsegmentation", root)
    assert [reject.key for reject in rejects] == ["rp_im/2"]
    assert [row.modality for row in rows] == ["ct_slice"] * 4 + ["ct_volume"]
    table = manifest_of("medicalsegmentation", root, tmp_path / "out")
    assert len(table) == 5
    assert table["sha256"].nunique() == 5  # slices of one file are not copies of each other
    row = next(row for row in rows if row.key == "tr_im.nii.gz@slice=2")
    read = read_radiograph(row.reference)
    assert (read.pixels == np.rint(stack[2])).all()
    assert (read.low, read.high) == (-1350.0, 150.0)
    found = read_classes(row.infection_mask, (40, 48))
    assert found is not None
    assert set(np.unique(found)) == {0, *LESIONS}  # effusion is left out
    assert (found == lesions() * (lesions() < 3)).all()
    assert not read_mask(rows[1].infection_mask, (40, 48)).any()  # no infection is a statement
    assert rows[3].infection_mask == ()  # nobody looked
    volumes = table[table["modality"] == "ct_volume"]
    assert read_mask(volumes["infection_mask"].iloc[0], (4, 40, 48)).sum() == 4 * 200


def test_a_withdrawn_patient_leaves_covid_ct_with_the_line_of_the_sheet(tmp_path: Path) -> None:
    root = covid_ct(tmp_path / "data/covid_ct")
    patient = keyed_id("covid_ct", "patient", "Patient 1", "key")
    (holding,) = find(patient, tmp_path / "data", "key")
    assert (len(holding.rows), list(holding.tables)) == (2, ["COVID-CT-MetaInfo.csv"])
    assert remove(holding, patient, "key") == 2
    assert "Patient 1," not in (root / "COVID-CT-MetaInfo.csv").read_text()
    rows, rejects = listed("covid_ct", root)
    assert (len(rows), [reject.reason for reject in rejects]) == (22, ["missing_file"] * 2)  # the lists name them still
