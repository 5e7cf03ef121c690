"""A model refuses what it was not made for, says why, and seldom refuses what it was made for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from chestflow.errors import TrainingError
from chestflow.imaging.images import Radiograph, Unreadable, Volume
from chestflow.serving import abstention, inputs
from tests import toy
from tests.model import bundles, toy_models

KNOWN = {"lung_area_range": torch.tensor([0.1, 0.3])}


@pytest.mark.parametrize(
    ("relative", "share", "reason"),
    [
        ([0.5], 0.2, None),
        ([1.0], 0.2, None),
        ([1.01], 0.2, "unlike_training"),
        ([0.5, 0.6, 9.0], 0.2, None),
        ([0.5, 1.2, 9.0], 0.2, "unlike_training"),
        ([math.nan], 0.2, "unlike_training"),
        ([0.5], 0.09, "lung_area"),
        ([0.5], 0.31, "lung_area"),
        ([0.5], 0.0, "lung_area"),
        ([0.5], None, None),
    ],
)
def test_the_verdict(relative: list[float], share: float | None, reason: str | None) -> None:
    judged = abstention.verdict(relative, [share] * len(relative), [KNOWN] * len(relative))
    assert (judged[0] if judged else None) == reason


def test_without_lungs_in_training_their_area_is_not_judged() -> None:
    assert abstention.verdict([0.5], [0.0], [{}]) is None


def test_the_rate_has_wilsons_interval() -> None:
    found = abstention.rate([None] * 95 + ["lung_area"] * 2 + ["unlike_training"] * 3)
    assert (found["images"], found["abstained"], found["lung_area"], found["unlike_training"]) == (100, 5, 2, 3)
    assert found["rate"] == 0.05
    assert found["lo"] == pytest.approx(0.02154, abs=1e-5)  # Wilson, n = 100, k = 5
    assert found["hi"] == pytest.approx(0.11175, abs=1e-5)
    assert math.isnan(abstention.rate([])["rate"])


def test_distances_relate_to_the_threshold() -> None:
    found = {"mean": torch.zeros(2), "precision": torch.eye(2), "threshold": torch.tensor(2.0)}
    assert abstention.relative_distances(np.array([[3.0, 4.0], [0.0, 1.0]]), found) == pytest.approx([2.5, 0.5])


def test_a_volume_without_lungs_is_judged_as_one_of_no_lung() -> None:
    pack, _ = toy.make_pack(3, (6, 8, 8))
    pack.index = pack.index.assign(has_lung=[True, False, True])
    pack.masks[1] = 0
    images = pack.index["image_id"].tolist()
    shares = abstention._lung_shares(pack, images)
    assert shares[1] == 0.0
    assert min(shares[0], shares[2]) > 0
    assert abstention.verdict([0.5], [shares[1]], [KNOWN])[0] == "lung_area"
    pack.recipe["modality"] = "ct_slice"  # lungs of slices need not be known
    assert abstention._lung_shares(pack, images)[1] is None


@pytest.mark.parametrize("name", ["plain", "pair"])
def test_fitting_images_are_seldom_refused(tmp_path: Path, name: str) -> None:
    described = bundles.write(tmp_path, name)
    found = abstention.false_abstention(described, tmp_path, toy_models.trained() / "out")
    assert found["images"] == 12
    assert found["abstained"] <= 4
    assert found["lo"] <= found["rate"] <= found["hi"]


def test_noise_is_unlike_the_training_set(tmp_path: Path) -> None:
    from chestflow.serving.answer import Predictor

    bundles.write(tmp_path, "plain")
    noise = np.random.default_rng(0).integers(0, 256, (96, 96)).astype(np.uint8)
    answer = Predictor(tmp_path, "m").answer(toy_models.write_xray(tmp_path / "x.png", noise))
    assert (answer.status, answer.reason) == ("abstained", "unlike_training")
    assert answer.probability is None
    assert answer.unusual is not None
    assert answer.unusual > 1


def test_damaged_statistics_are_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"embedding\.safetensors is missing or damaged"):
        abstention.load_statistics(tmp_path)
    save_file({"mean": torch.zeros(2)}, tmp_path / "embedding.safetensors")
    with pytest.raises(TrainingError, match="lacks the mean, the covariance or the threshold"):
        abstention.load_statistics(tmp_path)


def test_blank_pictures_and_volumes_are_told_from_chests() -> None:
    def picture(pixels: np.ndarray) -> Radiograph:
        return Radiograph(pixels.astype(np.float32), 8, None, "L", "png")

    assert inputs.is_blank(picture(np.full((50, 50), 128)))
    almost = np.zeros((50, 50))
    almost[:2, :10] = 255
    assert inputs.is_blank(picture(almost))
    assert not inputs.is_blank(picture(toy_models.xray(0, False)))
    assert inputs.is_blank(Volume(np.full((8, 16, 16), -1000, np.int16), (1.0, 1.0, 1.0)))
    assert not inputs.is_blank(Volume(toy_models.ct(0, True)[0], toy_models.SPACING))


def test_another_kind_of_image_is_refused_with_what_the_model_reads(tmp_path: Path) -> None:
    import cv2

    volume = toy_models.write_ct(tmp_path / "v.nii.gz", toy_models.ct(0, True)[0])
    grey = toy_models.write_xray(tmp_path / "x.png", toy_models.xray(0, False))
    photo = np.zeros((64, 64, 3), np.uint8)
    photo[:32], photo[32:] = (200, 120, 40), (30, 160, 60)
    cv2.imwrite(str(tmp_path / "photo.png"), photo)
    cv2.imwrite(str(tmp_path / "stored.png"), np.repeat(toy_models.xray(0, False)[..., None], 3, axis=2))
    with pytest.raises(inputs.Abstained, match="a volume; this model reads chest X-rays"):
        inputs.load(volume, "cxr")
    with pytest.raises(inputs.Abstained, match="a single picture; this model reads CT volumes"):
        inputs.load(grey, "ct_volume")
    with pytest.raises(inputs.Abstained, match="a colour photograph"):
        inputs.load(tmp_path / "photo.png", "cxr")
    assert isinstance(inputs.load(tmp_path / "stored.png", "cxr"), Radiograph)
    assert isinstance(inputs.load(volume, "ct_volume"), Volume)


def test_dicom_says_its_modality(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    ct_slice, magnetic = (Path(str(get_testdata_file(name))) for name in ("CT_small.dcm", "MR_small.dcm"))
    with pytest.raises(inputs.Abstained, match=r"modality CT.*reads chest X-rays"):
        inputs.load(ct_slice, "cxr")
    with pytest.raises(inputs.Abstained, match="modality MR; this model reads CT volumes"):
        inputs.load(magnetic, "ct_volume")
    with pytest.raises(Unreadable, match="single DICOM slice"):
        inputs.load(ct_slice, "ct_volume")
