"""Where slices lie: gaps, repeats, order, tilt, and volumes that are none, in DICOM series, NIfTI and grey slices."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from chestflow.data.examine import examine, task_of
from chestflow.data.sources.base import Row, get
from chestflow.imaging.grey_volume import EXTENT_MM, from_grey, grey_slices
from chestflow.imaging.positions import even_step
from chestflow.imaging.read import Unreadable, read_radiograph, read_volume
from tests.code.image_files import chest, write_dicom, write_png, write_series
from tests.data.ct_sets import grey_scan, nifti

HU = chest()


def fault(path: Path) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        read_volume(path)
    return caught.value


def slice_of(folder: Path, place: int, position: list[float], **tags: object) -> None:
    """One more slice, at any position."""
    ct = {
        "Modality": "CT",
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelSpacing": [0.7, 0.8],
        "ImagePositionPatient": position,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SliceThickness": 1.0,
    }
    write_dicom(folder / f"{place}.dcm", (HU[place % len(HU)] + 1024).astype(np.uint16), **{**ct, **tags})


@pytest.mark.parametrize(
    ("positions", "reason", "words"),
    [
        ([0, 2, 4, 8, 10], "missing_slices", "1 of 6 positions"),
        ([0, 2, 4, 6, 14], "missing_slices", "3 of 8 positions"),
        ([0, 2, 2, 4, 6], "mixed_series", "1 slices lie where another does"),
        ([0, 2, 4, 5, 6, 8, 10], "mixed_series", "2 of 6 steps are shorter"),
        ([3, 3], "mixed_series", "1 slices lie"),
    ],
)
def test_uneven_positions_are_refused(positions: list[float], reason: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=words) as caught:
        even_step(np.array(positions, float))
    assert caught.value.reason == reason
    for place, z in enumerate(positions):
        slice_of(tmp_path, place, [0.0, 0.0, float(z)])
    assert fault(tmp_path).reason == reason


def test_rounded_positions_are_even_and_their_mean_is_the_spacing() -> None:
    positions = np.round(np.arange(200) * 0.625, 1)  # steps of 0.6 and 0.7
    assert even_step(positions) == pytest.approx(0.625, abs=1e-3)
    assert even_step(np.array([-346.1, -338.1, -330.1])) == pytest.approx(8.0)


def test_reversed_order_and_negative_directions_give_one_volume(tmp_path: Path) -> None:
    for name, places in (("up", range(5)), ("down", range(4, -1, -1))):
        for number, place in enumerate(places):
            slice_of(tmp_path / name, number, [0.0, 0.0, 2.0 * place])
    up, down = read_volume(tmp_path / "up"), read_volume(tmp_path / "down")
    assert (up.hu == HU).all()
    assert (down.hu == HU[::-1]).all()  # file k holds plane k, whatever its position
    stored = HU.transpose(2, 1, 0)
    for signs in ((-0.8, -0.7, 2.0), (0.8, -0.7, 2.0), (-0.8, 0.7, -2.0), (0.8, 0.7, -2.0)):
        nibabel.save(nibabel.Nifti1Image(stored, np.diag([*signs, 1.0])), tmp_path / "a.nii")
        found = read_volume(tmp_path / "a.nii")
        assert found.spacing_mm == pytest.approx((2.0, 0.7, 0.8), rel=1e-5)
        flips = (signs[2] < 0, signs[1] > 0, signs[0] > 0)  # NIfTI's x and y run against ours
        assert (found.hu == HU[tuple(slice(None, None, -1 if flip else None) for flip in flips)]).all()


def test_a_tilted_gantry_is_refused(tmp_path: Path) -> None:
    angle = np.radians(15)
    tilted = [1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(-np.sin(angle))]
    for place in range(5):  # the table moves along z, the slices lean
        slice_of(tmp_path / "tilted", place, [0.0, 0.0, 2.0 * place], ImageOrientationPatient=tilted)
    error = fault(tmp_path / "tilted")
    assert error.reason == "tilted"
    assert "15.0 degrees" in error.detail
    normal = np.cross(tilted[:3], tilted[3:])
    for place in range(5):  # the same slices straightened: an oblique stack, which the nearest axes hold
        slice_of(tmp_path / "oblique", place, list(2.0 * place * normal), ImageOrientationPatient=tilted)
    assert read_volume(tmp_path / "oblique").spacing_mm[0] == pytest.approx(2.0)
    # Without positions the tag alone tells; with them it does not count.
    bare = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    assert fault(write_series(tmp_path / "tag", HU, GantryDetectorTilt=12.5, **bare)).reason == "tilted"
    assert read_volume(write_series(tmp_path / "none", HU, GantryDetectorTilt=0.0, **bare)).hu.shape == HU.shape
    assert read_volume(write_series(tmp_path / "straight", HU, GantryDetectorTilt=12.5)).hu.shape == HU.shape


def test_a_series_that_jumps_aside_is_refused(tmp_path: Path) -> None:
    for place in range(5):
        slice_of(tmp_path, place, [30.0 * (place > 2), 0.0, 2.0 * place])
    assert fault(tmp_path).reason == "tilted"


def test_sheared_nifti_is_refused_and_rotated_is_not(tmp_path: Path) -> None:
    affine = np.diag([0.8, 0.7, 2.0, 1.0])
    affine[1, 2] = 2.0 * np.tan(np.radians(10))  # slices shift towards the front as they rise
    error = fault(nifti(tmp_path / "sheared.nii.gz", HU, affine))
    assert error.reason == "tilted"
    assert "10.0 degrees" in error.detail
    with pytest.raises(Unreadable, match="tilted"):
        read_radiograph(Path(f"{tmp_path}/sheared.nii.gz@slice=0"))
    turn = np.eye(4)
    angle = np.radians(10)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    rotated = read_volume(nifti(tmp_path / "rotated.nii", HU, turn @ np.diag([0.8, 0.7, 2.0, 1.0])))
    assert (rotated.hu == HU).all()
    assert rotated.spacing_mm == pytest.approx((2.0, 0.7, 0.8), rel=1e-5)


def test_one_slice_and_empty_volumes_say_why(tmp_path: Path) -> None:
    row = Row("one", nifti(tmp_path / "one.nii", HU[:1]), "ct_volume", "cap")
    record, faults = examine(task_of(row, get("mosmed").INFO, "key"))
    assert record is None
    assert faults == [("missing_slices", "a volume needs at least 2 slices, this has 1")]
    zero = fault(nifti(tmp_path / "zero.nii", np.zeros_like(HU)))
    assert (zero.reason, zero.detail) == ("wrong_modality", "every voxel is 0: the volume is empty")
    zeros = write_series(tmp_path / "zeros", np.zeros_like(HU))
    assert fault(zeros).detail == "every voxel is 0: the volume is empty"


def test_a_slice_of_a_volume_is_that_of_the_volume(tmp_path: Path) -> None:
    stored = HU.transpose(1, 0, 2)  # rows, slices, columns
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = 0.7, -2.0, -0.8, 1.0
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "a.nii.gz")
    whole = read_volume(tmp_path / "a.nii.gz")
    for place in range(len(HU)):
        found = read_radiograph(Path(f"{tmp_path}/a.nii.gz@slice={place}"))
        assert (found.pixels == whole.hu[place]).all()
        assert found.spacing_mm == pytest.approx(whole.spacing_mm[1:])
        assert found.uint8().max() > found.uint8().min()
    with pytest.raises(Unreadable, match="slice 5 is asked for, the volume ends at 4"):
        read_radiograph(Path(f"{tmp_path}/a.nii.gz@slice=5"))


def test_grey_slices_become_hounsfield_units_by_the_window(tmp_path: Path) -> None:
    folder = grey_scan(tmp_path / "scan", 4)
    found = read_volume(Path(f"{folder}@window=-1000,1000"))
    assert found.hu[:, 5, 5].tolist() == [round(-1000 + grey * 2000 / 255) for grey in (80, 120, 160, 200)]
    assert found.spacing_mm == pytest.approx([mm / n for mm, n in zip(EXTENT_MM, (4, 12, 10), strict=True)])
    assert not found.spacing_stated
    # Without a stated window nothing says what the grey values mean.
    assert fault(folder).reason == "not_an_image"


def test_faulty_grey_slices(tmp_path: Path) -> None:
    def grey(folder: Path) -> Unreadable:
        return fault(Path(f"{folder}@window=-1350,150"))

    assert grey(grey_scan(tmp_path / "gap", 6, skip=(3,))).reason == "missing_slices"
    assert grey(grey_scan(tmp_path / "one", 1)).reason == "missing_slices"
    twice = grey_scan(tmp_path / "twice", 4)
    write_png(twice / "IM0001.png", np.zeros((12, 10), np.uint8))
    assert grey(twice).reason == "mixed_series"
    sizes = grey_scan(tmp_path / "sizes", 4)
    write_png(sizes / "0004.png", np.zeros((10, 10), np.uint8))
    assert grey(sizes).reason == "mixed_series"
    names = grey_scan(tmp_path / "names", 4)
    write_png(names / "cover.png", np.zeros((12, 10), np.uint8))
    assert grey(names).reason == "missing_tags"
    deep = grey_scan(tmp_path / "deep", 4)
    write_png(deep / "0004.png", np.full((12, 10), 4000, np.uint16))
    assert grey(deep).reason == "unsupported"
    cut = grey_scan(tmp_path / "cut", 4)
    (cut / "0003.png").write_bytes((cut / "0003.png").read_bytes()[:-20])
    assert grey(cut).detail.startswith("slice 1 of 4")  # the last number is the feet's
    (tmp_path / "empty").mkdir()
    assert grey(tmp_path / "empty").reason == "not_an_image"
    with pytest.raises(Unreadable, match="every voxel is 7"):
        from_grey(np.full((2, 2, 2), 7, np.uint8), (-1350.0, 150.0))
    assert [path.name for path in grey_slices(grey_scan(tmp_path / "order", 3))] == ["0002.png", "0001.png", "0000.png"]


def test_grey_nifti_beyond_its_range_is_no_grey_volume(tmp_path: Path) -> None:
    path = nifti(tmp_path / "hu.nii.gz", HU)
    error = fault(Path(f"{path}@window=-1250,250"))
    assert (error.reason, "where 0 to 255 were expected" in error.detail) == ("wrong_modality", True)
