"""PNG and JPEG radiographs, masks, and how faults are named."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chestflow.data.sources.base import mask_reference, parse_mask_reference
from chestflow.imaging.intensity import clahe
from chestflow.imaging.read import REASONS, Unreadable, read_mask, read_radiograph, read_volume
from tests.code.image_files import picture, write_png


def reason(function, *arguments) -> str:
    with pytest.raises(Unreadable) as caught:
        function(*arguments)
    assert caught.value.reason in REASONS
    return caught.value.reason


def test_8_bit_pictures_come_back_unchanged(tmp_path: Path) -> None:
    pixels = picture(1).clip(30, 180)  # no stretching, though the range is not full
    found = read_radiograph(write_png(tmp_path / "a.png", pixels))
    assert (found.uint8() == pixels).all()
    assert (found.bits, found.color_mode, found.file_format, found.spacing_mm) == (8, "L", "png", None)
    assert found.pixels.dtype == np.float32


def test_16_bit_pictures_fill_the_display_range(tmp_path: Path) -> None:
    deep = np.linspace(1000, 5000, 12 * 10).reshape(12, 10).astype(np.uint16)
    found = read_radiograph(write_png(tmp_path / "a.png", deep))
    assert (found.pixels == deep).all()
    assert found.bits == 16
    assert (found.uint8().min(), found.uint8().max()) == (0, 255)


def test_modes_are_noted_and_colours_become_luminance(tmp_path: Path) -> None:
    grey = picture(2)
    rgba = np.dstack([grey, grey, grey, np.full_like(grey, 7)])  # transparency does not count
    found = read_radiograph(write_png(tmp_path / "a.png", rgba))
    assert found.color_mode == "RGBA"
    assert (found.uint8() == grey).all()


def test_the_format_is_told_by_content(tmp_path: Path) -> None:
    Image.fromarray(picture(3)).save(tmp_path / "x.jpg")
    path = (tmp_path / "x.jpg").rename(tmp_path / "x.png")
    assert read_radiograph(path).file_format == "jpeg"


def test_a_cameras_rotation_counts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(3, 40, 48)).save(tmp_path / "x.jpg", exif=exif)
    assert read_radiograph(tmp_path / "x.jpg").pixels.shape == (48, 40)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_pictures(tmp_path: Path, name: str, share: float) -> None:
    Image.fromarray(picture(4, 200, 200)).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    assert reason(read_radiograph, tmp_path / name) == "truncated"


def test_other_content(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("this is no picture" * 50)
    assert reason(read_radiograph, tmp_path / "text.png") == "not_an_image"
    (tmp_path / "empty.png").touch()
    assert reason(read_radiograph, tmp_path / "empty.png") == "zero_size"
    assert reason(read_volume, tmp_path / "empty.png") == "zero_size"
    Image.fromarray(picture(5)).save(tmp_path / "a.gif")
    assert reason(read_radiograph, tmp_path / "a.gif") == "unsupported"
    assert reason(read_volume, write_png(tmp_path / "b.png", picture(5))) == "wrong_modality"
    assert reason(read_radiograph, tmp_path) == "wrong_modality"
    with pytest.raises(FileNotFoundError):
        read_radiograph(tmp_path / "absent.png")


def test_a_picture_without_extent(tmp_path: Path) -> None:
    data = bytearray(write_png(tmp_path / "a.png", picture(1)).read_bytes())
    data[16:20] = bytes(4)
    (tmp_path / "a.png").write_bytes(data)
    assert reason(read_radiograph, tmp_path / "a.png") == "zero_size"


def test_errors_name_no_file_and_survive_a_process_border(tmp_path: Path) -> None:
    path = tmp_path / "DOE_JANE.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(Unreadable) as caught:
        read_radiograph(path)
    assert "DOE" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, again.detail) == (caught.value.reason, caught.value.detail)


def test_mask_references_round_trip(tmp_path: Path) -> None:
    odd = tmp_path / "a@b, c" / "m@3,x.png"
    assert parse_mask_reference(mask_reference(odd)) == (odd, None)
    assert parse_mask_reference(mask_reference(odd, 12, 0)) == (odd, (12, 0))


def test_crops_are_pasted_and_united(tmp_path: Path) -> None:
    def crop(name: str, inside: np.ndarray) -> Path:
        grey = (inside * 90).astype(np.uint8)
        return write_png(tmp_path / name, np.dstack([grey * 0, grey, grey * 0, np.full_like(grey, 255)]))

    left, right = np.zeros((4, 3), bool), np.ones((2, 5), bool)
    left[1, 2] = True
    want = np.zeros((20, 30), bool)
    want[6:10, 7:10] |= left
    want[9:11, 8:13] |= right
    references = [mask_reference(crop("l.png", left), 6, 7), mask_reference(crop("r.png", right), 9, 8)]
    assert (read_mask(references, (20, 30)) == want).all()
    assert not read_mask([], (20, 30)).any()


def test_whole_masks_of_any_mode(tmp_path: Path) -> None:
    inside = picture(7) > 128
    palette = Image.fromarray(inside.astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0] + [0] * 750)
    palette.save(tmp_path / "p.png")
    write_png(tmp_path / "one.png", inside.astype(np.uint8))
    write_png(tmp_path / "full.png", inside.astype(np.uint8) * 255)
    Image.fromarray(inside).save(tmp_path / "bit.png")
    for name in ("p.png", "one.png", "full.png", "bit.png"):
        assert (read_mask([tmp_path / name], inside.shape) == inside).all(), name


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    path = write_png(tmp_path / "m.png", np.full((10, 10), 255, np.uint8))
    assert reason(read_mask, [path], (10, 11)) == "mask_size"
    assert read_mask([mask_reference(path, 2, 12)], (10, 20)).sum() == 8 * 8  # tools round outwards by up to two
    assert reason(read_mask, [mask_reference(path, 3, 0)], (10, 20)) == "mask_size"
    (tmp_path / "none.png").touch()
    assert reason(read_mask, [tmp_path / "none.png"], (10, 10)) == "empty_mask"


def test_clahe_takes_small_bytes_only() -> None:
    flat = np.full((64, 64), 100, np.uint8)
    ramp = np.tile(np.arange(100, 116, dtype=np.uint8), (64, 4))
    assert np.ptp(clahe(ramp)) > 2 * np.ptp(ramp)
    assert np.ptp(clahe(flat)) == 0
    for bad in (ramp.astype(np.float32), ramp[None], ramp[:2, :2]):
        with pytest.raises(Exception, match="CLAHE"):
            clahe(bad)
