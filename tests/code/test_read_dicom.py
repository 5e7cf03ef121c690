"""DICOM radiographs: photometric interpretation, rescale, window and LUT, padding, missing tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from chestflow.imaging.read import Unreadable, read_radiograph
from tests.code.image_files import SECRETS, write_dicom

RAMP = np.arange(0, 4000, 50, dtype=np.uint16).reshape(8, 10)


def reason(path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        read_radiograph(path)
    assert not any(secret in str(caught.value) for secret in SECRETS.values())
    return caught.value.reason


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    plain = read_radiograph(write_dicom(tmp_path / "a.dcm", RAMP, BitsStored=12, HighBit=11))
    inverted = read_radiograph(
        write_dicom(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    )
    assert (plain.bits, plain.color_mode, plain.file_format) == (12, "I;16", "dicom")
    assert (plain.pixels == RAMP).all()
    assert (inverted.pixels == RAMP.max() + RAMP.min() - RAMP.astype(np.float32)).all()
    assert (plain.uint8() == 255 - inverted.uint8()).all()


def test_8_bits_are_not_stretched(tmp_path: Path) -> None:
    stored = np.arange(60, 140, dtype=np.uint8).reshape(8, 10)
    assert (read_radiograph(write_dicom(tmp_path / "a.dcm", stored)).uint8() == stored).all()
    inverted = write_dicom(tmp_path / "b.dcm", stored, PhotometricInterpretation="MONOCHROME1")
    assert (read_radiograph(inverted).uint8() == 255 - stored).all()


def test_rescale_comes_before_the_window(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "a.dcm", RAMP, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=2000.5, WindowWidth=1001
    )
    found = read_radiograph(path)
    want = (RAMP.astype(np.float32) * 2 - 1000).clip(1500, 2500)
    assert (found.low, found.high) == (1500, 2500)
    assert np.allclose(found.pixels, want)
    assert (found.uint8().min(), found.uint8().max()) == (0, 255)


def test_the_first_of_several_windows_counts_and_a_window_beside_all_values_does_not(tmp_path: Path) -> None:
    first = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=[2000, 100], WindowWidth=[500, 50])
    assert read_radiograph(first).high == pytest.approx(2249, abs=1)
    beside = write_dicom(tmp_path / "b.dcm", RAMP, WindowCenter=90000, WindowWidth=10)
    assert (read_radiograph(beside).pixels == RAMP).all()
    sigmoid = write_dicom(tmp_path / "c.dcm", RAMP, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    assert read_radiograph(sigmoid).uint8()[4, 0] == 128  # the stored 2000, at the centre


def test_a_voi_lut_is_looked_up(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [256, 0, 8]
    table.add_new("LUTData", "US", list(range(255, -1, -1)))
    stored = np.arange(80, dtype=np.uint16).reshape(8, 10)
    path = write_dicom(tmp_path / "a.dcm", stored, VOILUTSequence=Sequence([table]))
    assert (read_radiograph(path).uint8() == 255 - stored).all()


def test_padding_is_black_and_outside_the_range(tmp_path: Path) -> None:
    stored = RAMP + 1000
    stored[0] = 65535
    for kind in ("MONOCHROME1", "MONOCHROME2"):
        found = read_radiograph(
            write_dicom(tmp_path / f"{kind}.dcm", stored, PixelPaddingValue=65535, PhotometricInterpretation=kind)
        )
        assert (found.uint8()[0] == 0).all()
        assert found.high == stored[1:].max()


def test_colours_and_spacing(tmp_path: Path) -> None:
    rgb = np.zeros((8, 10, 3), np.uint8)
    rgb[..., 1] = 100
    found = read_radiograph(write_dicom(tmp_path / "a.dcm", rgb, ImagerPixelSpacing=[0.2, 0.3]))
    assert found.color_mode == "RGB"
    assert found.uint8()[0, 0] == 59
    assert found.spacing_mm == (0.2, 0.3)


def test_missing_tags_are_borne(tmp_path: Path) -> None:
    gone = dict.fromkeys((*SECRETS, "Modality", "StudyInstanceUID", "PatientSex", "BitsStored", "PixelRepresentation"))
    assert (read_radiograph(write_dicom(tmp_path / "a.dcm", RAMP, **gone)).pixels == RAMP).all()


def test_faults(tmp_path: Path) -> None:
    good = write_dicom(tmp_path / "a.dcm", RAMP).read_bytes()
    for name, content in {"half": good[:-60], "header": good[:200], "tiny": good[:140]}.items():
        (tmp_path / f"{name}.dcm").write_bytes(content)
        assert reason(tmp_path / f"{name}.dcm") in ("truncated", "missing_tags")
    assert reason(write_dicom(tmp_path / "ct.dcm", RAMP, Modality="CT")) == "wrong_modality"
    assert reason(write_dicom(tmp_path / "zero.dcm", RAMP, Rows=0)) == "zero_size"
    assert reason(write_dicom(tmp_path / "neg.dcm", RAMP, PixelSpacing=[-1, 1])) == "nan_spacing"
    assert reason(write_dicom(tmp_path / "nan.dcm", RAMP, PixelSpacing=["nan", "1"])) == "nan_spacing"
    two = np.concatenate([RAMP, RAMP])
    assert reason(write_dicom(tmp_path / "two.dcm", two, Rows=8, NumberOfFrames=2)) == "unsupported"


def test_a_warning_of_the_library_tells_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    # An age that the standard forbids, beside an identifier: the library would quote the header's values.
    path.write_bytes(path.read_bytes().replace(b"070Y", b"ASSH"))
    read_radiograph(path)
    told = capfd.readouterr()
    assert "ASSH" not in told.out + told.err
