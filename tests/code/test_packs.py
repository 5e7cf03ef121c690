"""Packs: order, masks, atomicity, errors that name the image, the same bytes from one and from two processes."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chestflow.config import Recipe
from chestflow.data.manifest import conform
from chestflow.data.pack_building import build
from chestflow.data.packs import Pack
from chestflow.errors import DataError
from chestflow.parallel import WORTH_A_POOL
from chestflow.segmentation import masks as mask_files

RECIPE = Recipe.model_validate({"modality": "cxr", "size": [16, 24]}).model_dump()


def make(folder: Path, count: int) -> tuple[pd.DataFrame, Path]:
    """X-rays of one grey value each, names in falling order; every third has a lung mask over its left half."""
    masks = folder / "segment" / "masks"
    rows, flags = [], []
    for number in range(count):
        image_id, path = f"set-{count - number:04d}", folder / f"{number}.png"
        cv2.imwrite(str(path), np.full((40, 60), number % 250, dtype=np.uint8))
        if number % 3 == 0:
            bits = np.zeros((40, 60), dtype=np.uint8)
            bits[:, :30] = mask_files.LUNG
            mask_files.write(masks, image_id, bits)
        rows.append({"image_id": image_id, "modality": "cxr", "path": str(path), "source": "set"})
        flags.append({"image_id": image_id, "has_lung": number % 3 == 0, "has_infection": False})
    rows.append({"image_id": "other-1", "modality": "ct_volume", "path": "nowhere", "source": "set"})
    (folder / "segment").mkdir(exist_ok=True)
    pd.DataFrame(flags).to_parquet(folder / "segment" / "ratio.parquet")
    return conform(pd.DataFrame(rows)), masks


def test_rows_follow_the_image_ids_and_hold_images_and_masks(tmp_path: Path) -> None:
    manifest, masks = make(tmp_path, 7)
    build(manifest, RECIPE, masks, tmp_path / "packs" / "small", workers=1)
    pack = Pack.open(tmp_path / "packs" / "small")
    assert len(pack) == 7
    assert pack.data.shape == (7, 16, 24)
    assert pack.data.dtype == pack.masks.dtype == np.uint8
    assert list(pack.index["image_id"]) == sorted(pack.index["image_id"])
    assert pack.data[:, 0, 0].tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert pack.index["has_lung"].tolist() == [True, False, False, True, False, False, True]
    assert not pack.index["has_infection"].any()
    assert pack.masks[0, :, :12].min() == 1
    assert pack.masks[0, :, 12:].max() == 0
    assert pack.masks[1].max() == 0
    assert pack.recipe == RECIPE
    assert (pack.index["height"] == 40).all()


def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    manifest, masks = make(tmp_path, WORTH_A_POOL + 3)
    for workers in (1, 2):
        build(manifest, RECIPE, masks, tmp_path / f"pack{workers}", workers=workers)
    for name in ("data.npy", "masks.npy", "index.parquet", "recipe.json"):
        assert (tmp_path / "pack1" / name).read_bytes() == (tmp_path / "pack2" / name).read_bytes(), name


def test_gather_keeps_the_order_asked_for(tmp_path: Path) -> None:
    manifest, masks = make(tmp_path, 9)
    build(manifest, RECIPE, masks, tmp_path / "pack", workers=1)
    pack = Pack.open(tmp_path / "pack")
    rows = [7, 0, 3, 3, 8]
    data, bits = pack.gather(rows)
    assert np.array_equal(data, np.stack([pack.data[row] for row in rows]))
    assert bits is not None
    assert np.array_equal(bits, np.stack([pack.masks[row] for row in rows]))
    assert data.flags.c_contiguous
    assert data.flags.writeable
    assert pack.gather([])[0].shape == (0, 16, 24)
    with pytest.raises(IndexError, match="rows"):
        pack.gather([9])
    with pytest.raises(IndexError, match="rows"):
        pack.gather([-1])


def test_rows_of_names(tmp_path: Path) -> None:
    manifest, masks = make(tmp_path, 4)
    build(manifest, RECIPE, masks, tmp_path / "pack", workers=1)
    pack = Pack.open(tmp_path / "pack")
    assert pack.rows_of(["set-0003", "set-0001"]).tolist() == [2, 0]
    with pytest.raises(DataError, match="other-1 is not in the pack"):
        pack.rows_of(["set-0003", "other-1"])


def test_no_masks_at_all_gathers_none(tmp_path: Path) -> None:
    manifest, masks = make(tmp_path, 2)
    flags = pd.read_parquet(tmp_path / "segment" / "ratio.parquet").assign(has_lung=False)
    flags.to_parquet(tmp_path / "segment" / "ratio.parquet")
    build(manifest, RECIPE, masks, tmp_path / "pack", workers=1)
    assert Pack.open(tmp_path / "pack").gather([0])[1] is None


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_file_is_named_and_the_earlier_pack_stays(tmp_path: Path, workers: int) -> None:
    manifest, masks = make(tmp_path, WORTH_A_POOL + 3)
    out = tmp_path / "packs" / "small"
    build(manifest, RECIPE, masks, out, workers=1)
    before = (out / "data.npy").read_bytes()
    (tmp_path / "4.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=f"image set-{WORTH_A_POOL + 3 - 4:04d} cannot be packed") as caught:
        build(manifest, RECIPE, masks, out, workers=workers)
    assert str(tmp_path) not in str(caught.value)
    assert (out / "data.npy").read_bytes() == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["small"]


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    manifest, masks = make(tmp_path, 3)
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match="set-0002"):
        build(manifest, RECIPE, masks, tmp_path / "pack", workers=1)


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    manifest, masks = make(tmp_path, 3)
    mask_files.write(masks, "set-0003", np.ones((9, 9), dtype=np.uint8))
    with pytest.raises(DataError, match=r"set-0003.*one size"):
        build(manifest, RECIPE, masks, tmp_path / "pack", workers=1)


def test_a_full_disk_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, masks = make(tmp_path, 3)

    def nearly_full(path: Path) -> object:
        return type("Usage", (), {"free": 100})

    monkeypatch.setattr("chestflow.data.pack_building.shutil.disk_usage", nearly_full)
    with pytest.raises(DataError, match="free some space"):
        build(manifest, RECIPE, masks, tmp_path / "pack", workers=1)
    assert not (tmp_path / ".pack.partial").exists()


def test_no_image_of_the_modality(tmp_path: Path) -> None:
    manifest, masks = make(tmp_path, 2)
    with pytest.raises(DataError, match="no ct_slice"):
        build(manifest, {**RECIPE, "modality": "ct_slice"}, masks, tmp_path / "pack", workers=1)


def test_a_damaged_pack_is_refused(tmp_path: Path) -> None:
    manifest, masks = make(tmp_path, 3)
    build(manifest, RECIPE, masks, tmp_path / "pack", workers=1)
    content = (tmp_path / "pack" / "data.npy").read_bytes()
    (tmp_path / "pack" / "data.npy").write_bytes(content[:-100])
    with pytest.raises(DataError, match="damaged"):
        Pack.open(tmp_path / "pack")
    with pytest.raises(DataError, match="is missing"):
        Pack.open(tmp_path / "nowhere")


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5)])
def test_mask_files_come_back_as_written_and_hold_no_time(tmp_path: Path, shape: tuple[int, ...]) -> None:
    bits = np.random.default_rng(0).integers(0, 8, shape).astype(np.uint8)
    first = mask_files.write(tmp_path / "a", "x-1", bits, (2.0, 1.0, 0.5))
    second = mask_files.write(tmp_path / "b", "x-1", bits, (2.0, 1.0, 0.5))
    assert np.array_equal(mask_files.read(first), bits)
    assert first.read_bytes() == second.read_bytes()
    if len(shape) == 3:
        assert first.read_bytes()[4:8] == bytes(4)  # gzip's time field
    first.write_bytes(first.read_bytes()[:20])
    with pytest.raises(DataError, match=r"mask of image x-1 is damaged"):
        mask_files.read(first)
