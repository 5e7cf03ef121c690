"""Stage segment on a few small files: where masks come from, the ratio, the same bytes twice, errors by image_id."""

from pathlib import Path

import cv2
import nibabel
import numpy as np
import pandas as pd
import pytest

from chestflow.config import CxrLungs, Segment
from chestflow.data.manifest import conform
from chestflow.errors import DataError
from chestflow.files import read_json
from chestflow.segmentation import cxr_lungs, masks, places
from chestflow.segmentation.run import segment
from tests.code.test_cxr_lungs import xray
from tests.code.test_lungs import SPACING, thorax

NO_ROLES = pd.DataFrame({"cohort": [], "fold": [], "image_id": [], "role": []})


def nifti(path: Path, values: np.ndarray) -> str:
    """(D, H, W) in the readers' orientation to NIfTI."""
    z, y, x = SPACING
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([-x, -y, z, 1.0])), path)
    return str(path)


def png(path: Path, values: np.ndarray) -> str:
    cv2.imwrite(str(path), values.astype(np.uint8) * (255 if values.dtype == bool else 1))
    return str(path)


@pytest.fixture
def scan(tmp_path: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    """A manifest row of a volume with source masks, its true lungs, and its infection in two files."""
    hu, lungs = thorax()
    infection = np.zeros(lungs.shape, dtype=bool)
    infection[10:16, 34:44, 22:28] = infection[10:16, 34:44, 60:66] = True
    infection &= lungs
    hu[infection] = -500
    left, right = infection.copy(), infection.copy()
    left[:, :, :44], right[:, :, 44:] = False, False
    row = {"image_id": "a-ct", "modality": "ct_volume", "source": "a", "path": nifti(tmp_path / "ct.nii", hu)}
    row["infection_mask"] = [
        nifti(tmp_path / f"{i}.nii", part.astype(np.uint8)) for i, part in enumerate((left, right))
    ]
    row["lung_mask"] = [nifti(tmp_path / "lung.nii", lungs.astype(np.uint8))]
    return row, lungs, infection


def run(rows: list[dict], out: Path, settings: Segment | None = None, splits: pd.DataFrame = NO_ROLES) -> pd.DataFrame:
    manifest = conform(pd.DataFrame(rows))
    groups = pd.DataFrame({"image_id": manifest["image_id"], "group_id": manifest["image_id"]})
    modality = rows[0]["modality"]
    segment(modality, manifest, splits, groups, settings or Segment(), out, seed=1, threads=1, workers=1)
    return places.ratios(out, modality).set_index("image_id")


@pytest.mark.parametrize(("prefer", "origin"), [(False, "threshold"), (True, "source")])
def test_volume_ratio_is_taken_on_the_original_grid(
    tmp_path: Path, scan: tuple[dict, np.ndarray, np.ndarray], prefer: bool, origin: str
) -> None:
    row, lungs, infection = scan
    found = run([row], tmp_path, Segment(ct_prefer_source=prefer)).loc["a-ct"]
    millilitres = np.prod(SPACING) / 1000
    assert found["lung_from"] == origin
    assert found["infection_from"] == "source"
    assert found["infection_ml"] == pytest.approx(infection.sum() * millilitres)
    assert found["lung_ml"] == pytest.approx(lungs.sum() * millilitres, rel=1e-6 if prefer else 0.03)
    assert found["ratio"] == pytest.approx(found["infection_ml"] / found["lung_ml"])
    path = masks.find(places.masks(tmp_path, "ct_volume"), "a-ct")
    assert path is not None
    bits = masks.read(path)
    assert bits.shape == lungs.shape
    assert np.array_equal(bits & masks.INFECTION > 0, infection)
    assert found["outlined"]
    assert np.array_equal(bits & masks.OUTLINED > 0, infection)
    both = ((bits & masks.LUNG) > 0) & lungs
    assert 2 * both.sum() / (((bits & masks.LUNG) > 0).sum() + lungs.sum()) >= 0.95


def test_a_dense_infection_at_the_wall_counts_as_lung(
    tmp_path: Path, scan: tuple[dict, np.ndarray, np.ndarray]
) -> None:
    row, lungs, _ = scan
    hu, _ = thorax()
    wall = np.zeros(lungs.shape, dtype=bool)
    wall[8:24, 20:60, 72:] = True
    wall &= lungs
    hu[wall] = 20
    row = {**row, "path": nifti(tmp_path / "dense.nii", hu)}
    row["infection_mask"] = [nifti(tmp_path / "wall.nii", wall.astype(np.uint8))]
    found = run([row], tmp_path).loc["a-ct"]
    assert found["ratio"] == pytest.approx(wall.sum() / lungs.sum(), rel=0.05)


def test_unknown_stays_unknown(tmp_path: Path, scan: tuple[dict, np.ndarray, np.ndarray]) -> None:
    row, _, _ = scan
    blank = nifti(tmp_path / "blank.nii", np.full((6, 20, 20), -1000, dtype=np.int16))
    image = png(tmp_path / "x.png", xray(0)[0])
    rows = [
        {**row, "image_id": "a-known", "infection_mask": None},
        {"image_id": "a-blank", "modality": "ct_volume", "source": "a", "path": blank},
        {"image_id": "a-xray", "modality": "cxr", "source": "a", "path": image},
    ]
    found = run(rows, tmp_path)
    assert not (tmp_path / "segment" / "cxr").exists(), "another modality's images are another stage's"
    found = pd.concat([found, run(rows[::-1], tmp_path)])
    assert found["has_infection"].tolist() == [False] * 3
    assert found["infection_from"].tolist() == ["none"] * 3
    assert found["outlined"].tolist() == [False] * 3
    assert found["lung_from"].to_dict() == {"a-blank": "none", "a-known": "threshold", "a-xray": "none"}
    assert found["ratio"].isna().all()
    assert found.loc["a-blank", ["lung_ml", "infection_ml"]].isna().all()
    assert masks.find(places.masks(tmp_path, "ct_volume"), "a-blank") is None


def test_a_modality_without_images_has_an_empty_table(tmp_path: Path) -> None:
    row = {"image_id": "a-xray", "modality": "cxr", "source": "a", "path": "nowhere.png"}
    manifest = conform(pd.DataFrame([row]))
    groups = pd.DataFrame({"image_id": ["a-xray"], "group_id": ["a-xray"]})
    contents = []
    for _ in range(2):
        segment("ct_slice", manifest, NO_ROLES, groups, Segment(), tmp_path, seed=1, threads=1, workers=1)
        contents.append((places.segmented(tmp_path, "ct_slice") / "ratio.parquet").read_bytes())
    assert places.ratios(tmp_path, "ct_slice").empty
    assert list(places.masks(tmp_path, "ct_slice").iterdir()) == []
    assert contents[0] == contents[1]


def test_xrays_take_source_masks_first_and_the_network_second(tmp_path: Path) -> None:
    rows = []
    for number in range(40):
        image, lungs = xray(number, (80, 72))
        name = f"a-{number:03d}"
        row = {"image_id": name, "modality": "cxr", "source": "a", "path": png(tmp_path / f"{name}.png", image)}
        if number < 36:
            row["lung_mask"] = [png(tmp_path / f"{name}-lung.png", lungs)]
        lesion = lungs.copy()
        lesion[:50] = False
        row["infection_mask"] = [png(tmp_path / f"{name}-lesion.png", lesion)]
        rows.append(row)
    roles = pd.DataFrame({"cohort": "c", "fold": 0, "image_id": [r["image_id"] for r in rows], "role": "train"})
    roles.loc[:5, "role"] = "test"
    settings = Segment(cxr_lungs=CxrLungs(sets=["a"], size=64, epochs=16, width=8, batch_size=8, lr=5e-3))
    found = run(rows, tmp_path, settings, roles)
    assert found["lung_from"].tolist() == ["source"] * 36 + ["unet"] * 4
    assert found[["lung_ml", "infection_ml"]].isna().all(axis=None)
    for number in (0, 37):
        image, lungs = xray(number, (80, 72))
        path = masks.find(places.masks(tmp_path, "cxr"), f"a-{number:03d}")
        assert path is not None
        bits = masks.read(path)
        assert cxr_lungs.dice(bits & masks.LUNG > 0, lungs) > 0.8
        lungs[:50] = False
        assert np.array_equal(bits & masks.OUTLINED > 0, lungs)
        assert 0 < found.loc[f"a-{number:03d}", "ratio"] < 1
    evidence = read_json(tmp_path / "segment" / "cxr" / "cxr_lungs.json")
    assert evidence["mode"] == "held_out"
    assert evidence["trained_on"] == {"images": 30, "patients": 30}
    assert evidence["dice"]["patients"] == 6
    assert evidence["dice"]["mean"] > 0.8
    cxr_lungs.load(tmp_path / "segment" / "cxr" / "cxr_lungs.safetensors")
    before = {path.name: path.read_bytes() for path in (tmp_path / "segment").rglob("*") if path.is_file()}
    run(rows, tmp_path, settings, roles)
    after = {path.name: path.read_bytes() for path in (tmp_path / "segment").rglob("*") if path.is_file()}
    assert before == after


def test_a_mask_of_another_size_names_the_image_and_leaves_the_last_result(
    tmp_path: Path, scan: tuple[dict, np.ndarray, np.ndarray]
) -> None:
    row, lungs, _ = scan
    run([row], tmp_path)
    wrong = {**row, "infection_mask": [nifti(tmp_path / "wrong.nii", lungs[:5].astype(np.uint8))]}
    with pytest.raises(DataError, match="image a-ct cannot be segmented") as caught:
        run([wrong], tmp_path)
    assert str(tmp_path) not in str(caught.value)
    assert (tmp_path / "segment" / "ct_volume" / "ratio.parquet").exists()
    assert not (tmp_path / ".segment-ct_volume.partial").exists()
