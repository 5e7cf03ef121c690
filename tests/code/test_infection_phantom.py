"""Slices of phantoms: healthy ones train with empty masks, or get pseudo labels that no scaling by range fills."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chestflow.data.phantom import anatomy, modalities
from chestflow.data.phantom.cohort import draw
from chestflow.data.phantom.grid import Grid
from chestflow.segmentation import infection, places, slice_network
from tests.code.infection_cases import SIDE, fit_slices, small_slices, stand_in, write_png


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


class Undecided(nn.Module):
    """Stands for a network that is nowhere above one half, and whose answer varies with the picture all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, image: Tensor) -> SimpleNamespace:
        logits = torch.logit(0.02 + 0.4 * image / 255) + 0 * self.bias
        return SimpleNamespace(logits=logits, probability=logits.sigmoid, kinds=None)


@pytest.mark.parametrize("normal_as_empty", [True, False])
def test_healthy_slices_train_empty_or_get_labels_that_no_scaling_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normal_as_empty: bool
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(slice_network, "build", lambda shape, *_: slice_network.SliceNetwork(Undecided(), shape))
    saw: list[tuple[np.ndarray, np.ndarray]] = []
    train = slice_network.train

    def watched(model: object, images: np.ndarray, targets: np.ndarray, *rest: object, **more: object) -> None:
        saw.append((images, targets))
        train(model, images, targets, *rest, **more)

    monkeypatch.setattr(slice_network, "train", watched)
    rows, healthy = phantom_rows(tmp_path, 9, 3)
    settings = small_slices(normal_as_empty=normal_as_empty, pseudo={"sets": ["a"], "chunk": 50, "epochs": 1})
    said = fit_slices(rows, {healthy[0]: "test", rows[0]["image_id"]: "test"}, settings, tmp_path)
    folder = places.infection(tmp_path, "ct_slice")
    labelled = {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in folder.glob("pseudo/*.png")}
    trained = {image.tobytes(): target for image, target in zip(*saw[0], strict=True)}
    pictures = {row["image_id"]: cv2.imread(row["path"], cv2.IMREAD_UNCHANGED) for row in rows}
    if normal_as_empty:
        assert labelled == {}, "what trains with an empty mask gets no pseudo label"
        assert not any(trained[pictures[name].tobytes()].any() for name in healthy[1:])
        assert said["healthy"] == {"images": 1, "empty": 1, "marked_share": 0.0}
    else:
        assert sorted(labelled) == sorted(healthy[1:])
        assert not any(mask.any() for mask in labelled.values())
        assert not any(pictures[name].tobytes() in trained for name in healthy)
    network = infection.load(folder)
    for name in healthy:
        probability = network.probability_slice(pictures[name])
        assert probability is not None
        assert probability.max() - probability.min() > 0.2, "scaled by its range the answer would mark this slice"
        assert not (probability > network.final["ct_slice"].threshold).any()


@pytest.mark.slow
def test_a_trained_network_marks_next_to_nothing_of_healthy_slices(tmp_path: Path) -> None:
    rows, healthy = phantom_rows(tmp_path, 24, 12)
    infected = [row["image_id"] for row in rows if row["label"] == "covid19"]
    settings = small_slices(
        normal_as_empty=True, size=96, channel=16, epochs=20, lr=0.003, schedule="cosine", batch_size=4,
        score_norm=False, fourth=True,
    )  # fmt: skip
    held = [*healthy[-15:], *infected[-15:]]
    said = fit_slices(rows, dict.fromkeys(held, "test"), settings, tmp_path)
    assert said["healthy"]["images"] == 15
    assert said["healthy"]["empty"] >= 10
    assert said["healthy"]["marked_share"] < 0.002
    assert said["figures"]["dice"]["value"] > 0.5
