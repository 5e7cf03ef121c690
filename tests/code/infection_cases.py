"""Slices and volumes with lesions, as manifest rows with files, for tests of the infection segmenters."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from chestflow.config import Infection, Segment
from chestflow.config_segmentation import InfectionSlices
from chestflow.data.manifest import conform
from chestflow.files import read_json
from chestflow.segmentation import places, slice_network
from chestflow.segmentation.infection_fitting import fit_infection
from tests.code.test_lungs import SPACING, thorax

SIDE = 64


class Small(nn.Module):
    """Stands for Inf-Net: quick, and with batch norm, whose buffers must survive an interruption too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))

    def forward(self, image: Tensor) -> SimpleNamespace:
        logits = self.body(image / 255)
        return SimpleNamespace(logits=logits, probability=lambda: logits.sigmoid(), kinds=None)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let :class:`Small` take the place of Inf-Net, and plain cross entropy that of its loss."""

    def build(shape: slice_network.Shape, seed: int = 0, weights: str | None = None) -> slice_network.SliceNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return slice_network.SliceNetwork(Small(), shape)

    def loss(model: slice_network.SliceNetwork, parts: list[Tensor], weighting: str) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model.network(parts[0]).logits, parts[1])

    monkeypatch.setattr(slice_network, "build", build)
    monkeypatch.setattr(slice_network, "loss", loss)


def ct_slice(seed: int, *, healthy: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(H, W) grey values of a thorax in the lung window, its infection and its lungs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    lungs = np.zeros((SIDE, SIDE), bool)
    for side in (-0.42, 0.42):
        lungs |= ((x - side) / 0.3) ** 2 + (y / 0.6) ** 2 < 1
    grey = np.where((x / 0.95) ** 2 + (y / 0.85) ** 2 < 1, 230.0, 5.0)
    grey[lungs] = 60
    infection = np.zeros_like(lungs)
    if not healthy:
        cy, cx = rng.uniform(-0.3, 0.3), rng.choice([-0.45, 0.45])
        infection = (((x - cx) / 0.2) ** 2 + ((y - cy) / 0.25) ** 2 < 1) & lungs
        grey[infection] = 150
    return np.clip(grey + rng.normal(0, 6, grey.shape), 0, 255).astype(np.uint8), infection, lungs


def ct_volume(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(D, H, W) HU of a thorax, its infection and its lungs."""
    hu, lungs = thorax(seed)
    rng = np.random.default_rng(seed)
    infection = np.zeros(lungs.shape, bool)
    z, y, x = rng.integers(6, 18), rng.integers(26, 40), rng.choice([18, 54])
    infection[z : z + 10, y : y + 16, x : x + 14] = True
    infection &= lungs
    hu[infection] = -400
    return hu, infection, lungs


def write_png(path: Path, values: np.ndarray) -> str:
    cv2.imwrite(str(path), values.astype(np.uint8) * (255 if values.dtype == bool else 1))
    return str(path)


def write_nifti(path: Path, values: np.ndarray) -> str:
    z, y, x = SPACING
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([-x, -y, z, 1.0])), path)
    return str(path)


def slice_rows(root: Path, count: int, *, healthy: int = 0, unlabelled: int = 0) -> list[dict]:
    """Rows of infected slices with masks, healthy ones and infected ones without; all with lungs."""
    rows = []
    for number in range(count + healthy + unlabelled):
        well = count <= number < count + healthy
        grey, infection, lungs = ct_slice(number, healthy=well)
        name = f"a-{number:03d}"
        row = {"image_id": name, "modality": "ct_slice", "source": "a", "label": "normal" if well else "covid19"}
        row["path"] = write_png(root / f"{name}.png", grey)
        row["lung_mask"] = [write_png(root / f"{name}-lung.png", lungs)]
        if number < count:
            row["infection_mask"] = [write_png(root / f"{name}-infection.png", infection)]
        rows.append(row)
    return rows


def volume_rows(root: Path, count: int) -> list[dict]:
    """Rows of infected volumes with masks."""
    rows = []
    for number in range(count):
        hu, infection, lungs = ct_volume(number)
        name = f"v-{number:03d}"
        rows.append(
            {
                "image_id": name, "modality": "ct_volume", "source": "a", "label": "covid19",
                "path": write_nifti(root / f"{name}.nii", hu),
                "lung_mask": [write_nifti(root / f"{name}-lung.nii", lungs.astype(np.uint8))],
                "infection_mask": [write_nifti(root / f"{name}-infection.nii", infection.astype(np.uint8))],
            }
        )  # fmt: skip
    return rows


def tables(rows: list[dict], roles: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Manifest, splits of one cohort and fold with the given roles (train elsewhere), and a group an image."""
    manifest = conform(pd.DataFrame(rows))
    names = list(manifest["image_id"])
    splits = pd.DataFrame(
        {"cohort": "c", "fold": 0, "image_id": names, "role": [roles.get(name, "train") for name in names]}
    )
    return manifest, splits, pd.DataFrame({"image_id": names, "group_id": [f"g-{name}" for name in names]})


def small_slices(**more: object) -> InfectionSlices:
    """Settings of a network for the slices above: one epoch, one scale, other values as given."""
    own = {"sets": ["a"], "backbone": "resnet18", "channel": 8, "size": SIDE, "scales": [1.0], "batch_size": 8}
    return InfectionSlices.model_validate({**own, "epochs": 1, "lr": 3e-2, "schedule": "cosine", **more})


def fit_slices(rows: list[dict], roles: dict[str, str], settings: InfectionSlices, out: Path, **more: object) -> dict:
    """Run the stage on slices in one fold with the given roles; its evidence."""
    manifest, splits, groups = tables(rows, roles)
    return fit_tables(manifest, splits, groups, settings, out, **more)


def fit_tables(
    manifest: pd.DataFrame,
    splits: pd.DataFrame,
    groups: pd.DataFrame,
    settings: InfectionSlices,
    out: Path,
    **more: object,
) -> dict:
    """Run the stage on slices of a manifest; its evidence."""
    whole = Infection(ct_slice=settings)
    fit_infection(
        "ct_slice", manifest, splits, groups, whole, Segment(), out, seed=1, threads=1, workers=1, **more
    )  # fmt: skip
    return read_json(places.infection(out, "ct_slice") / "evidence.json")
