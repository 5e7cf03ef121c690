"""Damage of any kind ends in a reason, never in a library's own exception, and prints nothing."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from chestflow.imaging.read import Radiograph, Unreadable, Volume, read_mask, read_radiograph, read_volume
from tests.code.image_files import chest, picture, write_dicom, write_series


def originals(folder: Path) -> dict[str, bytes]:
    """One good file of each format."""
    files = {}
    for name, form in (("a.png", "PNG"), ("a.jpg", "JPEG")):
        buffer = io.BytesIO()
        Image.fromarray(picture(3, 64, 64)).save(buffer, form)
        files[name] = buffer.getvalue()
    files["a.dcm"] = write_dicom(folder / "x.dcm", picture(3, 32, 32).astype(np.uint16) * 10).read_bytes()
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(chest().transpose(2, 1, 0), np.eye(4)), folder / name)
        files[name] = (folder / name).read_bytes()
    return files


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, bytes changed, a stretch zeroed, or a stretch left out; headers more often than the rest."""
    reach = len(data) if rng.random() < 0.5 else min(len(data), 400)
    at = int(rng.integers(0, reach))
    kind = rng.integers(0, 4)
    if kind == 0:
        return data[:at]
    changed = bytearray(data)
    if kind == 1:
        for place in rng.integers(0, reach, 6):
            changed[place] = int(rng.integers(0, 256))
    elif kind == 2:
        changed[at : at + 16] = bytes(len(changed[at : at + 16]))
    else:
        del changed[at : at + 7]
    return bytes(changed)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.dcm", "a.nii", "a.nii.gz"])
def test_damaged_files_give_a_reason_or_an_image(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = originals(tmp_path)[name]
    rng = np.random.default_rng(7)
    path = tmp_path / f"damaged.{name}"
    refused = 0
    for _ in range(120):
        path.write_bytes(damaged(data, rng))
        for read in (read_radiograph, read_volume, lambda p: read_mask([p], (64, 64))):
            try:
                found = read(path)
            except Unreadable:
                refused += 1
            else:
                pixels = found.pixels if isinstance(found, Radiograph) else getattr(found, "hu", found)
                assert pixels.size
                assert isinstance(found, Volume) or pixels.dtype in (np.float32, bool)
    assert refused > 120  # each is refused at least by the reader of the other kind
    told = capfd.readouterr()
    assert told.out + told.err == ""


def test_damaged_slices_give_a_reason_or_a_volume(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_series(tmp_path / "series", chest(4))
    capfd.readouterr()  # what writing says does not count
    rng = np.random.default_rng(8)
    victim = sorted(folder.iterdir())[1]
    data = victim.read_bytes()
    outcomes = set()
    for _ in range(80):
        victim.write_bytes(damaged(data, rng))
        try:
            outcomes.add(read_volume(folder).hu.shape == (4, 12, 10))
        except Unreadable as error:
            outcomes.add(error.reason)
    assert len(outcomes) > 2
    told = capfd.readouterr()
    assert told.out + told.err == ""
