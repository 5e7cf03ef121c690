"""Slices of phantoms: healthy ones stay empty, whether they train with empty masks or get pseudo labels."""

from pathlib import Path

import cv2
import pytest

from chestflow.data.phantom import anatomy, modalities
from chestflow.data.phantom.cohort import draw
from chestflow.data.phantom.grid import Grid
from chestflow.segmentation import infection, places
from tests.code.infection_cases import SIDE, fit_slices, small_slices, write_png


def phantom_rows(root: Path, infected: int, healthy: int) -> tuple[list[dict], list[str]]:
    """Rows of slices of so many patients of each kind, with masks where there is infection; the healthy ones' names."""
    rows, names = [], []
    left = {"covid19": infected, "normal": healthy}
    for patient in draw(3 * (infected + healthy), seed=5):
        if not left.get(patient.label):
            continue
        left[patient.label] -= 1
        study = patient.studies[0]
        scan = modalities.ct(
            patient, study, anatomy.build(patient, study, Grid((48, SIDE, SIDE), patient.site.extent_mm))
        )
        for part in modalities.slices(patient, study, scan):
            name = f"{patient.name}-{part.level}"
            row = {
                "image_id": name, "modality": "ct_slice", "source": "a", "label": patient.label,
                "patient_id": patient.name, "path": write_png(root / f"{name}.png", part.pixels),
                "lung_mask": [write_png(root / f"{name}-lung.png", part.lung)],
            }  # fmt: skip
            if patient.label == "normal":
                names.append(name)
            else:
                row["infection_mask"] = [write_png(root / f"{name}-infection.png", part.infection)]
            rows.append(row)
    return rows, names


@pytest.mark.parametrize("normal_as_empty", [True, False])
def test_healthy_slices_stay_empty(tmp_path: Path, normal_as_empty: bool) -> None:
    rows, healthy = phantom_rows(tmp_path, 9, 5)
    held = {healthy[0]: "test", rows[0]["image_id"]: "test"}
    settings = small_slices(
        score_norm=False, epochs=7, batch_size=4, lr=3e-3, normal_as_empty=normal_as_empty,
        pseudo={"sets": ["a"], "chunk": 50, "epochs": 1, "batch_size": 8, "lr": 1e-4},
    )  # fmt: skip
    said = fit_slices(rows, held, settings, tmp_path)
    folder = places.infection(tmp_path, "ct_slice")
    labelled = {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in folder.glob("pseudo/*.png")}
    network = infection.load(folder)
    if normal_as_empty:
        assert labelled == {}, "what trains with an empty mask gets no pseudo label"
        assert said["healthy"] == {"images": 1, "empty": 1, "marked_share": 0.0}
    else:
        assert sorted(labelled) == sorted(healthy[1:])
        assert not any(mask.any() for mask in labelled.values())
    for row in rows:
        if row["image_id"] in healthy:
            found = network.predict_slice(cv2.imread(row["path"], cv2.IMREAD_UNCHANGED))
            assert found is not None
            assert not found.any()
    assert said["figures"]["dice"]["value"] > 0.3, "a network that finds nothing anywhere would pass what is above"
