"""The X-ray lung segmenter: it learns, it repeats itself, it survives a round trip, and it trains on nobody's test."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from chestflow.config import CxrLungs
from chestflow.errors import DataError, TrainingError
from chestflow.segmentation import cxr_lungs
from chestflow.segmentation.fitting import MIN_GROUPS, fit, plan

SIZE = 64
SETTINGS = CxrLungs(sets=["set"], size=SIZE, epochs=10, width=8, batch_size=8, lr=5e-3)


def xray(number: int, shape: tuple[int, int] = (SIZE, SIZE)) -> tuple[np.ndarray, np.ndarray]:
    """A bright chest with two dark ellipses, each picture with its own place, size and noise; and the ellipses."""
    random = np.random.default_rng(number)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    shift, size = random.uniform(-0.08, 0.08, 2), random.uniform(0.85, 1.15)
    lungs = np.zeros(shape, dtype=bool)
    for side in (-1, 1):
        lungs |= ((x - side * 0.42 - shift[0]) / 0.26) ** 2 + ((y - shift[1]) / 0.6) ** 2 < size
    picture = np.where(lungs, 70, 160) + 40 * y + random.normal(0, 12, shape)
    return np.clip(picture, 0, 255).astype(np.uint8), lungs


def stack(numbers: range) -> tuple[np.ndarray, np.ndarray]:
    pairs = [xray(number) for number in numbers]
    return np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])


@pytest.fixture(scope="module")
def model() -> cxr_lungs.LungSegmenter:
    return cxr_lungs.train(*stack(range(32)), SETTINGS, seed=3, threads=1)


def test_learns_lungs_that_it_did_not_see_on_their_own_grid(model: cxr_lungs.LungSegmenter) -> None:
    for number in range(100, 104):
        image, lungs = xray(number, (150, 120))
        found = cxr_lungs.predict(model, image)
        assert found.shape == (150, 120)
        assert found.dtype == bool
        assert cxr_lungs.dice(found, lungs) > 0.9


def test_the_same_seed_gives_the_same_weights_and_leaves_the_world_alone() -> None:
    images, masks = stack(range(9))
    short = SETTINGS.model_copy(update={"epochs": 1})
    torch.manual_seed(0)
    first = cxr_lungs.train(images, masks, short, seed=1, threads=1).network.state_dict()
    drawn, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(5)
    again = cxr_lungs.train(images, masks, short, seed=1, threads=1).network.state_dict()
    other = cxr_lungs.train(images, masks, short, seed=2, threads=1).network.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert threads == torch.get_num_threads()


def test_saved_and_loaded_it_answers_the_same(model: cxr_lungs.LungSegmenter, tmp_path: Path) -> None:
    for name in ("a", "b"):
        cxr_lungs.save(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = cxr_lungs.load(tmp_path / "a")
    image, _ = xray(50)
    assert np.array_equal(cxr_lungs.predict(model, image), cxr_lungs.predict(loaded, image))


def test_missing_and_damaged_weights_are_one_clear_line(model: cxr_lungs.LungSegmenter, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="missing"):
        cxr_lungs.load(tmp_path / "none.safetensors")
    path = tmp_path / "weights.safetensors"
    cxr_lungs.save(model, path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(TrainingError, match="damaged"):
        cxr_lungs.load(path)


@pytest.mark.parametrize("value", [0, 128])
def test_a_blank_picture_gives_a_mask_and_no_error(model: cxr_lungs.LungSegmenter, value: int) -> None:
    found = cxr_lungs.predict(model, np.full((90, 70), value, dtype=np.uint8))
    assert found.shape == (90, 70)


def test_an_answer_keeps_two_regions_and_may_be_empty() -> None:
    probability = np.full((32, 32), 0.1, dtype=np.float32)
    probability[4:20, 3:10] = probability[4:20, 20:27] = 0.9
    probability[26:29, 14:17] = 0.9  # a third, far smaller
    found = cxr_lungs.outline(probability, (64, 64))
    assert found[16, 12]
    assert found[16, 46]
    assert not found[50:60].any()
    assert not cxr_lungs.outline(np.zeros((8, 8), np.float32), (16, 16)).any()


def test_loss_is_finite_for_empty_masks_and_falls_with_overlap() -> None:
    empty, logits = torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), -60.0)
    assert torch.isfinite(cxr_lungs.loss(logits, empty))
    assert torch.isfinite(cxr_lungs.loss(-logits, empty))
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., :4] = 1
    assert cxr_lungs.loss(20 * truth - 10, truth) < 0.01 < cxr_lungs.loss(10 - 20 * truth, truth)


def test_augmentation_moves_image_and_mask_together() -> None:
    _, lungs = xray(1)
    images = torch.as_tensor(lungs)[None, None].float().expand(16, -1, -1, -1)
    moved, masks = cxr_lungs.augment(images, images, torch.Generator().manual_seed(0))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    for one, mask in zip(moved, masks, strict=True):  # gain and bias keep what is above the middle above it
        middle = (one.max() + one.min()) / 2
        assert cxr_lungs.dice((one > middle).numpy(), (mask > 0.5).numpy()) > 0.95
    assert not torch.equal(masks[0], masks[1])


def manifest(count: int, masked: int, per_group: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
    names = [f"set-{i:03d}" for i in range(count)]
    frame = pd.DataFrame({"image_id": names, "source": "set", "modality": "cxr"})
    frame["path"] = [f"{name}.png" for name in names]
    frame["lung_mask"] = [[f"{name}-lung.png"] if i < masked else None for i, name in enumerate(names)]
    frame["patient_id"] = [f"set-p{i // per_group}" for i in range(count)]
    return frame, pd.DataFrame({"image_id": names, "group_id": [f"g{i // per_group:03d}" for i in range(count)]})


def roles(frame: pd.DataFrame, roles_of: dict[int, list[str]]) -> pd.DataFrame:
    rows = [
        {"cohort": "c", "fold": fold, "image_id": image, "role": role}
        for fold, named in roles_of.items()
        for image, role in zip(frame["image_id"], named, strict=True)
    ]
    return pd.DataFrame(rows, columns=["cohort", "fold", "image_id", "role"])


def test_no_group_with_a_judged_image_trains() -> None:
    frame, groups = manifest(60, masked=50, per_group=2)
    named = ["train", "test"] * 10 + ["train", "tune"] * 5 + ["train"] * 30
    chosen = plan(frame, roles(frame, {0: named}), groups, ["set"], seed=0)
    assert chosen.mode == "held_out"
    training = set(chosen.table.loc[chosen.table["part"] == 0, "group_id"])
    judged = {g for g, role in zip(groups["group_id"], named, strict=True) if role in ("test", "tune")}
    assert training
    assert not training & judged
    assert (chosen.table["part"] == 1).sum() == 30


def test_external_images_bar_their_group_and_two_folds_bar_both() -> None:
    frame, groups = manifest(40, masked=40)
    first = ["external"] * 5 + ["train"] * 35
    second = ["train"] * 35 + ["test"] * 5
    chosen = plan(frame, roles(frame, {0: first, 1: second}), groups, ["set"], seed=0)
    assert chosen.table["part"].tolist() == [1] * 5 + [0] * 30 + [1] * 5


def test_a_role_of_a_patients_other_modality_bars_nobody() -> None:
    """A classifier of CT never meets the masks of X-rays."""
    frame, groups = manifest(40, masked=40)
    scans = frame.assign(image_id=[f"ct-{name}" for name in frame["image_id"]], modality="ct_volume", lung_mask=None)
    both = pd.concat([groups, groups.assign(image_id=scans["image_id"])], ignore_index=True)
    splits = pd.concat(
        [roles(frame, {0: ["test"] * 8 + ["train"] * 32}), roles(scans, {0: ["train"] * 32 + ["test"] * 8})]
    )
    chosen = plan(pd.concat([frame, scans], ignore_index=True), splits, both, ["set"], seed=0)
    assert chosen.table["part"].tolist() == [1] * 8 + [0] * 32


def test_sets_outside_all_cohorts_keep_a_fifth_for_the_dice() -> None:
    frame, groups = manifest(40, masked=40)
    chosen = plan(frame, roles(frame, {}), groups, ["set"], seed=0)
    assert chosen.mode == "held_out"
    assert chosen.table["part"].sum() == 8


def test_when_all_are_tested_somewhere_halves_train_for_each_other() -> None:
    frame, groups = manifest(40, masked=30, per_group=2)
    folds = {fold: ["test" if i // 8 == fold else "train" for i in range(40)] for fold in range(5)}
    chosen = plan(frame, roles(frame, folds), groups, ["set"], seed=0)
    assert chosen.mode == "cross_fit"
    assert chosen.table.groupby("group_id")["part"].nunique().max() == 1
    assert 0.3 < chosen.table["part"].mean() < 0.7


def test_too_few_masks_is_said() -> None:
    frame, groups = manifest(40, masked=MIN_GROUPS - 1)
    with pytest.raises(DataError, match="lung masks"):
        plan(frame, roles(frame, {}), groups, ["set"], seed=0)
    with pytest.raises(DataError, match="lung masks"):
        plan(frame, roles(frame, {}), groups, ["elsewhere"], seed=0)


def test_cross_fitted_networks_never_saw_the_group_they_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, groups = manifest(24, masked=16, per_group=2)
    frame.loc[1, "lung_mask"] = None  # one image without a mask, in a group that has one
    folds = {fold: ["test" if i // 8 == fold else "train" for i in range(24)] for fold in range(3)}
    pictures, saw = {f"set-{i:03d}": i for i in range(24)}, {}

    def pair(case: tuple, size: int) -> tuple[np.ndarray, np.ndarray]:
        image, lungs = xray(pictures[case[0]])
        image[0, 0] = pictures[case[0]]  # the picture's number, to know it again
        return image, lungs

    def train(images: np.ndarray, masks: np.ndarray, *_: object, **__: object) -> cxr_lungs.LungSegmenter:
        network = cxr_lungs.build(SIZE, 4)
        saw[id(network)] = {f"set-{number:03d}" for number in images[:, 0, 0]}
        network.network.eval()
        return network

    monkeypatch.setattr("chestflow.segmentation.fitting.read_pair", pair)
    monkeypatch.setattr(cxr_lungs, "train", train)
    fitted = fit(frame, roles(frame, folds), groups, SETTINGS, seed=0, threads=1, workers=1)
    assert fitted.evidence["mode"] == "cross_fit"
    assert fitted.evidence["dice"]["images"] <= 15
    group_of = dict(zip(groups["image_id"], groups["group_id"], strict=True))
    for image in frame["image_id"]:
        seen_groups = {group_of[name] for name in saw[id(fitted.for_image(image))]}
        if image < "set-016":
            assert group_of[image] not in seen_groups
        else:
            assert fitted.for_image(image) is fitted.final
    assert len(saw[id(fitted.final)]) == 15
