"""Volumes in which no lungs are found: they train neither network, and where none has lungs the stage says so."""

from pathlib import Path

import numpy as np
import pytest

from chestflow.config import Infection, Segment
from chestflow.config_segmentation import InfectionVolumes
from chestflow.errors import DataError
from chestflow.segmentation import volume_network
from chestflow.segmentation.infection_fitting import fit_infection
from chestflow.segmentation.infection_volumes import VolumeTraining
from tests.code.infection_cases import small_slices, stand_in, tables, volume_rows, write_nifti
from tests.code.test_lungs import SPACING


def fit(rows: list[dict], network: str, out: Path) -> None:
    own = InfectionVolumes(
        sets=["a"], network=network, slices=small_slices(sets=[]), slices_per_volume=2,
        spacing_mm=(12.0, 12.0, 12.0), patch=(16, 16, 16), width=4, epochs=1, patches_per_volume=1,
    )  # fmt: skip
    manifest, splits, groups = tables(rows, {"v-008": "test"})
    fit_infection(
        "ct_volume", manifest, splits, groups, Infection(ct_volume=own), Segment(), out, seed=1, threads=1, workers=1
    )


def without_lungs(row: dict, root: Path) -> dict:
    """The row with water below air, and a mask that marks some of the water."""
    name, shape = row["image_id"], (12, 24, 24)
    marked = np.zeros(shape, np.uint8)
    marked[4:6, 4:9, 4:9] = 1
    mask = write_nifti(root / f"{name}-marked.nii", marked)
    hu = np.full(shape, 40, np.int16)
    hu[:, :3] = -1000  # air before the body and none in it
    water = write_nifti(root / f"{name}-water.nii", hu)
    return {**row, "path": water, "infection_mask": [mask], "lung_mask": None}


@pytest.mark.parametrize("network", ["slices", "unet3d"])
def test_volumes_without_lungs_are_named_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], network: str
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(VolumeTraining, "measure", lambda *_: iter(()))
    rows = volume_rows(tmp_path, 2)
    rows = [{**rows[number % 2], "image_id": f"v-{number:03d}"} for number in range(9)]
    fit([without_lungs(rows[0], tmp_path), *rows[1:]], network, tmp_path)
    said = capsys.readouterr().err
    assert said.count("no lungs were found in v-000: check their HU; they train nothing") == 1
    empty = [without_lungs(row, tmp_path) for row in rows]
    with pytest.raises(DataError, match=r"infection\.ct_volume\.sets: no lungs were found in any"):
        fit(empty, network, tmp_path)


def test_a_box_of_no_lungs_is_refused() -> None:
    with pytest.raises(ValueError, match="without lungs"):
        volume_network.place_of(np.zeros((4, 4, 4), bool), SPACING)
