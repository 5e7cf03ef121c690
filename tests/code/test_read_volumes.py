"""CT volumes: one orientation from any storage, spacing from positions, incomplete series refused."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest

from chestflow.imaging.images import to_zyx
from chestflow.imaging.read import Unreadable, read_mask, read_radiograph, read_volume
from chestflow.imaging.series import read_series
from tests.code.image_files import SECRETS, chest, write_dicom, write_series

HU = chest()


def reason(path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        read_volume(path)
    assert not any(secret in str(caught.value) for secret in SECRETS.values())
    return caught.value.reason


def write_nifti(path: Path, hu: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """``hu`` (D, H, W) on our axes, stored as most tools do (x to the right, y to the front, z to the head)."""
    stored = hu[:, ::-1, ::-1].transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([0.8, 0.7, 2.0, 1.0]) if affine is None else affine), path)
    return path


def test_a_series_is_sorted_and_spaced_by_position(tmp_path: Path) -> None:
    found = read_volume(write_series(tmp_path / "P001", HU, step=8.0))
    assert (found.hu == HU).all()
    assert found.hu.dtype == np.int16
    assert found.spacing_mm == (8.0, 0.7, 0.8)  # and not SliceThickness, which says 1


def test_slice_location_stands_in_for_missing_positions(tmp_path: Path) -> None:
    folder = write_series(tmp_path, HU, ImagePositionPatient=None, ImageOrientationPatient=None)
    assert (read_volume(folder).hu == HU).all()


def test_flipped_slices_are_turned_back(tmp_path: Path) -> None:
    # Stored with columns towards the right and rows towards the front: both axes run the other way.
    folder = write_series(tmp_path / "a", HU[:, ::-1, ::-1], ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    assert (read_volume(folder).hu == HU).all()
    # Coronal planes whose positions differ along z alone lie all in one plane.
    coronal = write_series(tmp_path / "c", HU, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    assert reason(coronal) == "mixed_series"


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_any_storage_order_gives_one_orientation(order: tuple[int, ...]) -> None:
    towards = {0: (0.0, 0.0, 1.0), 1: (0.0, 1.0, 0.0), 2: (1.0, 0.0, 0.0)}  # of our axes z, y, x
    turn, _ = np.linalg.qr(np.eye(3) + 0.05 * np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]))
    turn *= np.sign(np.diag(turn))
    for flips in product([1, -1], repeat=3):
        stored = HU.transpose(order)[tuple(slice(None, None, sign) for sign in flips)]
        directions = np.array([np.array(towards[axis]) * sign for axis, sign in zip(order, flips, strict=True)])
        directions = directions @ turn  # a little oblique
        spacing = tuple((3.0, 2.0, 1.0)[axis] for axis in order)
        turned, zyx = to_zyx(stored, directions, spacing)
        assert (turned == HU).all()
        assert zyx == (3.0, 2.0, 1.0)


def test_nifti_and_series_agree(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        found = read_volume(write_nifti(tmp_path / name, HU))
        assert (found.hu == HU).all()
        assert found.spacing_mm == pytest.approx((2.0, 0.7, 0.8), rel=1e-5)
    flipped = np.diag([-0.8, -0.7, 2.0, 1.0])  # stored as DICOM is
    nibabel.save(nibabel.Nifti1Image(HU.transpose(2, 1, 0), flipped), tmp_path / "b.nii")
    assert (read_volume(tmp_path / "b.nii").hu == HU).all()
    mask = write_nifti(tmp_path / "m.nii.gz", (HU > 100).astype(np.uint8))
    assert (read_mask([mask], HU.shape) == (HU > 100)).all()


def test_floats_are_rounded_and_clipped(tmp_path: Path) -> None:
    values = HU.astype(np.float32) + 0.4
    values[0, 0, 0] = 1e6
    found = read_volume(write_nifti(tmp_path / "a.nii", values)).hu
    assert found[0, 0, 0] == 32767
    assert (found.ravel()[1:] == HU.ravel()[1:]).all()


def test_headers_that_differ_by_rounding_are_one_series(tmp_path: Path) -> None:
    jitter = {"PixelSpacing": [0.7001, 0.8], "ImageOrientationPatient": [1, 0.00002, 0, 0, 0.999999, 0]}
    folder = write_series(tmp_path / "P001", HU)
    write_series(tmp_path / "other", HU, **jitter)
    for other in sorted((tmp_path / "other").iterdir())[2:4]:
        other.replace(folder / other.name)
    found = read_volume(folder)
    assert (found.hu == HU).all()
    assert found.spacing_mm[1:] == pytest.approx((0.7, 0.8), rel=1e-3)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("PixelSpacing", [0.71, 0.8]),
        ("PixelSpacing", None),
        ("ImageOrientationPatient", [1, 0, 0, 0, 0.9998, 0.02]),
        ("ImageOrientationPatient", None),
    ],
)
def test_headers_that_differ_by_more_are_mixed(tag: str, value: object, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "P001", HU)
    write_series(tmp_path / "other", HU, **{tag: value})
    other = sorted((tmp_path / "other").iterdir())[2]
    other.replace(folder / other.name)
    with pytest.raises(Unreadable, match=f"{tag} differs between the slices") as caught:
        read_volume(folder)
    assert caught.value.reason == "mixed_series"


def test_incomplete_and_mixed_series(tmp_path: Path) -> None:
    assert reason(write_series(tmp_path / "gap", HU, skip=(2,))) == "missing_slices"
    assert reason(write_series(tmp_path / "one", HU, skip=(1, 2, 3, 4))) == "missing_slices"
    mixed = write_series(tmp_path / "mixed", HU, skip=(3,))
    write_dicom(mixed / "z.dcm", np.zeros((12, 10), np.uint16), Modality="CT", SeriesInstanceUID="9.9")
    assert reason(mixed) == "mixed_series"
    twice = write_series(tmp_path / "twice", HU)
    (twice / "copy.dcm").write_bytes(sorted(twice.glob("*.dcm"))[0].read_bytes())
    assert reason(twice) == "mixed_series"
    assert reason(write_series(tmp_path / "mr", HU, Modality="MR")) == "wrong_modality"
    (tmp_path / "empty").mkdir()
    assert reason(tmp_path / "empty") == "not_an_image"


def test_faulty_slices(tmp_path: Path) -> None:
    cut = write_series(tmp_path / "cut", HU)
    first = sorted(cut.iterdir())[0]
    first.write_bytes(first.read_bytes()[:-30])
    assert reason(cut) == "truncated"
    assert reason(write_series(tmp_path / "nan", HU, PixelSpacing=["nan", "0.7"])) == "nan_spacing"
    assert reason(write_series(tmp_path / "no", HU, PixelSpacing=None)) == "missing_tags"
    assert reason(write_series(tmp_path / "raw", HU, RescaleIntercept=None)) == "missing_tags"
    bare = write_series(tmp_path / "bare", HU, ImagePositionPatient=None, SliceLocation=None)
    assert reason(bare) == "missing_tags"
    bad = write_series(tmp_path / "text", HU)
    (bad / "x.dcm").write_text("no dicom")
    assert reason(bad) == "not_an_image"


def test_localisers_and_notes_are_passed_over(tmp_path: Path) -> None:
    folder = write_series(tmp_path, HU)
    scout = np.zeros((20, 20), np.uint16)
    write_dicom(folder / "scout.dcm", scout, Modality="CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (folder / "notes.txt").write_text("for the reader")
    (folder / ".hidden").write_text("x")
    assert (read_volume(folder).hu == HU).all()
    assert len(read_series(folder).files) == len(HU)


def test_padding_becomes_air(tmp_path: Path) -> None:
    hu = HU.copy()
    hu[:, 0] = 900
    folder = write_series(tmp_path, hu, PixelPaddingValue=900 + 1024)
    assert (read_volume(folder).hu[:, 0] == -1024).all()


def test_faulty_nifti(tmp_path: Path) -> None:
    good = write_nifti(tmp_path / "a.nii", HU).read_bytes()

    def altered(name: str, at: int, value: bytes) -> Path:
        (tmp_path / name).write_bytes(good[:at] + value + good[at + len(value) :])
        return tmp_path / name

    nan, none = np.float32("nan").tobytes(), np.float32(0).tobytes()
    assert reason(altered("nan.nii", 80, nan)) == "nan_spacing"  # pixdim[1]
    assert reason(altered("affine.nii", 280, nan)) == "nan_spacing"  # srow_x[0]
    assert reason(altered("zero.nii", 42, np.int16(0).tobytes())) == "zero_size"  # dim[1]
    assert reason(altered("flat.nii", 280, none)) == "nan_spacing"
    (tmp_path / "cut.nii").write_bytes(good[:-40])
    (tmp_path / "head.nii").write_bytes(good[:100])
    packed = write_nifti(tmp_path / "a.nii.gz", HU).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(packed[: len(packed) // 2])
    for name in ("cut.nii", "head.nii", "cut.nii.gz"):
        assert reason(tmp_path / name) == "truncated", name
    (tmp_path / "text.nii.gz").write_text("no volume")
    assert reason(tmp_path / "text.nii.gz") == "not_an_image"
    hole = HU.astype(np.float32)
    hole[0, 0, 0] = np.nan
    assert reason(write_nifti(tmp_path / "hole.nii", hole)) == "nan_pixels"
    assert reason(write_nifti(tmp_path / "mr.nii", HU + 1000)) == "wrong_modality"
    with pytest.raises(Unreadable, match="wrong_modality"):
        read_radiograph(tmp_path / "a.nii")
