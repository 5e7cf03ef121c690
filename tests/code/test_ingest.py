"""Stage ingest: rejects with reasons, hashes, identities, subsets, determinism."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from chestflow.data.examine import examine, task_of, years
from chestflow.data.hashing import hamming, phash
from chestflow.data.identity import keyed_id
from chestflow.data.ingest import ingest
from chestflow.data.manifest import COLUMNS, REJECT_COLUMNS
from chestflow.data.sources.base import Row, get, mask_reference
from chestflow.errors import ConfigError, DataError
from tests.code.image_files import (
    SECRETS,
    chest,
    cohen_metadata,
    darkcovid,
    picture,
    write_dicom,
    write_png,
    write_series,
)


def run(root: Path, out: Path, name: str = "darkcovid", **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    ingest(name, root, out, id_key=options.pop("id_key", "key"), workers=options.pop("workers", 1), **options)
    return pd.read_parquet(out / "manifest.parquet"), pd.read_csv(out / "rejects.csv")


def test_one_row_per_picture_and_one_reject_per_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = darkcovid(tmp_path / "darkcovid")
    covid = root / "X-Ray Image DataSet" / "Covid-19"
    whole = (covid / "case-0.png").read_bytes()
    (covid / "cut.png").write_bytes(whole[: len(whole) // 2])
    (covid / "text.jpg").write_text("no picture")
    (covid / "none.png").touch()
    write_dicom(covid / "ct.dcm", np.zeros((8, 8), np.uint16), Modality="CT")
    (covid / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (covid / ".DS_Store").write_text("left by a desktop")
    manifest, rejects = run(root, tmp_path / "out")
    assert list(manifest.columns) == list(COLUMNS)
    assert list(rejects.columns) == list(REJECT_COLUMNS)
    assert manifest["label"].value_counts().to_dict() == {"covid19": 4, "pneumonia": 4, "normal": 4}
    assert sorted(rejects["reason"]) == ["missing_file", "not_an_image", "truncated", "wrong_modality", "zero_size"]
    assert not set(rejects["image_id"]) & set(manifest["image_id"])
    assert manifest["image_id"].str.fullmatch(r"darkcovid-[0-9a-f]{12}").all()
    first = manifest.iloc[0]
    assert (first["width"], first["height"], first["depth"], first["bits"]) == (48, 40, 1, 8)
    assert (manifest["sha256"].str.len() == 64).all()
    assert (manifest["phash"].str.len() == 16).all()
    said = capsys.readouterr().out
    assert "12 images, 5 rejects" in said
    assert "case-" not in said


def test_the_same_input_gives_the_same_bytes_on_any_number_of_workers(tmp_path: Path) -> None:
    root = darkcovid(tmp_path / "darkcovid", each=10)  # enough pictures for a pool
    run(root, tmp_path / "a", workers=1)
    run(root, tmp_path / "b", workers=2)
    for name in ("manifest.parquet", "rejects.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_identities_depend_on_the_key_alone(tmp_path: Path) -> None:
    root = darkcovid(tmp_path / "darkcovid")
    one, _ = run(root, tmp_path / "a")
    other, _ = run(root, tmp_path / "b", id_key="another")
    shutil.move(root, tmp_path / "elsewhere")
    moved, _ = run(tmp_path / "elsewhere", tmp_path / "c")
    assert not set(one["image_id"]) & set(other["image_id"])
    assert list(one["image_id"]) == list(moved["image_id"])
    assert list(one["patient_id"].dropna()) == list(moved["patient_id"].dropna())
    # Follow-ups of one NIH patient share an identity; COVID files carry none without the table.
    assert one.loc[one["label"] == "pneumonia", "patient_id"].nunique() == 2
    assert one.loc[one["label"] == "covid19", "patient_id"].isna().all()


def test_keyed_ids() -> None:
    assert keyed_id("a", "image", "x", "k") == keyed_id("a", "image", "x", "k")
    assert (
        len(
            {
                keyed_id(*args)
                for args in [("a", "image", "x", "k"), ("a", "patient", "x", "k"), ("a", "image", "x", "j")]
            }
        )
        == 3
    )
    with pytest.raises(ConfigError, match="id_key"):
        keyed_id("a", "image", "x", "")


def test_cohens_patients_are_the_same_in_every_set(tmp_path: Path) -> None:
    root = darkcovid(tmp_path / "data" / "darkcovid")
    lines = [f"{i // 2},F,{64 + 10 * i},COVID-19,PA,X-ray,case-{i}.jpeg,CC BY-NC-SA,secret story" for i in range(4)]
    cohen_metadata(tmp_path / "data" / "cohen_seg" / "metadata.csv", lines)
    manifest, _ = run(root, tmp_path / "out")
    covid = manifest[manifest["label"] == "covid19"].sort_values("path")
    assert list(covid["patient_id"]) == [keyed_id("cohen", "patient", n, "key") for n in "0011"]
    assert list(covid["age"]) == [64, 74, 84, 90]  # ages above 89 are not told apart
    assert set(covid["licence"]) == {"CC BY-NC-SA"}
    assert not covid["commercial_use"].any()


def test_no_identifying_value_leaves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "covid_ct_md"
    write_series(root / "COVID-19 subjects" / "P001", chest())
    write_series(root / "Cap subjects" / "cap001", chest() + 1, SeriesInstanceUID="1.2.9", skip=(2,))
    cut = write_series(root / "Cap subjects" / "cap002", chest() + 2, SeriesInstanceUID="1.2.10")
    for path in cut.iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    write_series(root / "Normal subjects" / "normal001", chest() + 3, SeriesInstanceUID="1.2.11", PatientAge="ASSH")
    manifest, rejects = run(root, tmp_path / "out", "covid_ct_md")
    assert sorted(rejects["reason"]) == ["missing_slices", "truncated"]
    assert (len(manifest), manifest["depth"].tolist()) == (2, [5, 5])
    covid = manifest[manifest["label"] == "covid19"].iloc[0]
    assert (covid["sex"], covid["age"], covid["color_mode"], covid["file_format"]) == ("F", 70, "HU", "dicom")
    assert covid["spacing_mm"].tolist() == [2.0, 0.7, 0.8]
    assert manifest["phash"].isna().all()
    told = capfd.readouterr()
    cells = " ".join(str(cell) for frame in (manifest, rejects) for cell in frame.to_numpy().ravel())
    raw = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for secret in (*SECRETS.values(), "1.2.3.77", "1.2.3.88", "ASSH"):
        assert secret not in cells + told.out + told.err
        assert secret.encode() not in raw


def test_masks_that_cannot_be_used_leave_the_image(tmp_path: Path) -> None:
    image = write_png(tmp_path / "x.png", picture(1))
    full = write_png(tmp_path / "full.png", np.full((40, 48), 255, np.uint8))
    void = write_png(tmp_path / "void.png", np.zeros((40, 48), np.uint8))
    small = write_png(tmp_path / "small.png", np.full((4, 4), 255, np.uint8))
    (tmp_path / "none.png").touch()

    def look(lung: Path, infection: Path) -> tuple[dict, list]:
        row = Row("x.png", image, "cxr", "covid19", lung_mask=(str(lung),), infection_mask=(str(infection),))
        record, faults = examine(task_of(row, get("darkcovid").INFO, "key"))
        assert record is not None
        return record, [reason for reason, _ in faults]

    record, faults = look(full, void)
    assert faults == []  # no infection is a statement
    assert record["infection_mask"] == [str(void)]
    record, faults = look(void, small)
    assert faults == ["empty_mask", "mask_size"]  # lungs without a pixel are a fault
    assert record["lung_mask"] is None
    assert record["infection_mask"] is None
    assert look(tmp_path / "none.png", tmp_path / "absent.png")[1] == ["empty_mask", "missing_file"]
    assert look(Path(mask_reference(small, 36, 44)), full)[1] == []


def test_nifti_volumes_are_examined(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(chest().transpose(2, 1, 0), np.diag([0.5, 0.6, 3, 1])), tmp_path / "v.nii.gz")
    row = Row("v.nii.gz", tmp_path / "v.nii.gz", "ct_volume", "cap", sex="M")
    record, faults = examine(task_of(row, get("covid_ct_md").INFO, "key"))
    assert record is not None
    assert faults == []
    assert (record["depth"], record["height"], record["width"], record["bits"]) == (5, 12, 10, 16)
    assert record["spacing_mm"] == pytest.approx([3, 0.6, 0.5])
    # The reader's own fault, whatever it is, becomes a reject.
    broken = Row("v.nii.gz", None, "ct_volume", "cap")  # type: ignore[arg-type]
    record, faults = examine(task_of(broken, get("covid_ct_md").INFO, "key"))
    assert record is None
    assert faults[0][0] == "unsupported"


def test_a_subset_keeps_whole_patients_and_every_label(tmp_path: Path) -> None:
    root = darkcovid(tmp_path / "darkcovid", each=12)
    whole, _ = run(root, tmp_path / "a")
    some, _ = run(root, tmp_path / "b", patients=15)
    more, _ = run(root, tmp_path / "c", patients=20)
    assert set(some["label"]) == {"covid19", "pneumonia", "normal"}
    assert some["patient_id"].fillna(some["image_id"]).nunique() == pytest.approx(15, abs=2)
    assert set(some["image_id"]) < set(more["image_id"]) < set(whole["image_id"])
    pneumonia = some[some["label"] == "pneumonia"]
    assert (pneumonia.groupby("patient_id").size() == 2).all()


def test_withdrawn_patients_do_not_come_back(tmp_path: Path) -> None:
    root = darkcovid(tmp_path / "darkcovid")
    gone = keyed_id("nih", "patient", "00000000", "key")
    (root / ".withdrawn").write_text(f"{gone}\n")
    manifest, _ = run(root, tmp_path / "out")
    assert gone not in set(manifest["patient_id"])
    assert len(manifest) == 10


def test_a_set_without_a_usable_image_stops_and_says_where_the_reasons_are(tmp_path: Path) -> None:
    root = darkcovid(tmp_path / "darkcovid", each=1)
    for path in root.rglob("*.png"):
        path.write_text("ruined")
    with pytest.raises(DataError, match=r"no image of the set darkcovid can be used.*rejects\.csv"):
        run(root, tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out" / "rejects.csv")) == 3


def test_perceptual_hashes_tell_copies_from_others() -> None:
    import cv2

    one = picture(1, 200, 220)
    smaller = cv2.resize(one, (90, 100), interpolation=cv2.INTER_AREA)
    assert hamming(phash(one), phash(smaller)) <= 4
    assert hamming(phash(one), phash(picture(2, 200, 220))) > 10


@pytest.mark.parametrize(
    ("text", "age"), [("039Y", 39), ("006M", 0.5), ("", None), (None, None), ("Y", None), ("-01Y", None)]
)
def test_dicom_ages(text: str | None, age: float | None) -> None:
    assert years(text) == age
