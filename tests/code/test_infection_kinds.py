"""Ground glass and consolidation: the second head from masks by class, through training and file, to Dice by kind."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from chestflow.config import Infection
from chestflow.data.references import LESIONS, mask_reference
from chestflow.data.sources.base import Row
from chestflow.data.sources.covid_semiseg import rows as semiseg_rows
from chestflow.errors import ConfigError
from chestflow.imaging.read import read_classes, read_mask
from chestflow.segmentation import infection, places, slice_network
from chestflow.segmentation.infection_slices import read_square, read_whole
from chestflow.segmentation.slice_network import Schooling, Shape
from chestflow.segmentation.training_loop import Course
from tests.code.infection_cases import SIDE, ct_slice, fit_slices, slice_rows, small_slices, write_png
from tests.data.ct_sets import palette

GLASS, SOLID = 110, 190  # grey values of the two kinds


def two_kinds(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) grey values of a thorax with one lesion in each lung, and their kinds: 0, 1 or 2."""
    grey, _, lungs = ct_slice(seed, healthy=True)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    kinds = np.zeros(grey.shape, np.uint8)
    for kind, side in zip((1, 2), rng.permutation([-0.42, 0.42]), strict=True):
        lesion = ((x - side) / 0.22) ** 2 + ((y - rng.uniform(-0.2, 0.2)) / 0.25) ** 2 < 1
        kinds[lesion & lungs] = kind
    noise = rng.normal(0, 6, grey.shape)
    grey = np.where(kinds == 1, GLASS + noise, np.where(kinds == 2, SOLID + noise, grey))
    return np.clip(grey, 0, 255).astype(np.uint8), kinds


def rows_with_kinds(root: Path, count: int) -> list[dict]:
    """Rows of a set ``k`` whose masks are palette pictures of the kinds, named class by class."""
    made = []
    for number in range(count):
        grey, kinds = two_kinds(number)
        name = f"k-{number:03d}"
        mask = palette(root / f"{name}-kinds.png", kinds)
        made.append(
            {
                "image_id": name, "modality": "ct_slice", "source": "k", "label": "covid19",
                "path": write_png(root / f"{name}.png", grey),
                "infection_mask": [mask_reference(mask, values=(kind,), lesion=kind) for kind in (1, 2)],
            }
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A real Inf-Net on slices with kinds, slices with infection alone, and one round of pseudo labels."""
    root = tmp_path_factory.mktemp("kinds")
    saw: list[np.ndarray | None] = []
    train = slice_network.train

    def watched(*positional: object, kinds: np.ndarray | None = None, **more: object) -> None:
        saw.append(kinds)
        train(*positional, kinds=kinds, **more)

    rows = rows_with_kinds(root, 12) + slice_rows(root, 3, unlabelled=4)
    settings = small_slices(
        sets=["a", "k"], kinds=True, score_norm=False, epochs=7, batch_size=4, lr=3e-3,
        pseudo={"sets": ["a"], "chunk": 2, "epochs": 1, "batch_size": 8, "lr": 1e-4},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slice_network, "train", watched)
        said = fit_slices(rows, {"k-000": "test", "k-001": "test", "a-000": "test"}, settings, root)
    return SimpleNamespace(root=root, said=said, saw=saw)


def test_the_stage_trains_keeps_and_measures_the_second_head(trained: SimpleNamespace) -> None:
    said = trained.said
    assert said["images"] == 3
    assert set(said["by_kind"]) == set(LESIONS.values())
    for kind in said["by_kind"].values():
        assert (kind["images"], kind["patients"]) == (2, 2), "the slice whose mask tells no kinds counts in neither"
        assert kind["figures"]["dice"]["value"] > 0.4
    network = infection.load(places.infection(trained.root, "ct_slice")).final["ct_slice"]
    assert network.model.shape.classes == len(LESIONS)
    untrained = slice_network.build(network.model.shape, 1).network.kinds.state_dict()
    kept = network.model.network.kinds.state_dict()
    assert not torch.equal(kept["2.weight"], untrained["2.weight"])
    grey, truth = two_kinds(50)
    found = network.kinds_of_picture(grey)
    inside = network.of_picture(grey) > network.threshold
    assert found.dtype == np.uint8
    assert inside.any()
    assert not found[~inside].any()
    assert set(np.unique(found[inside])) == {1, 2}
    both = inside & (truth > 0)
    assert (found[both] == truth[both]).mean() > 0.8, "read from the file, the head still tells the kinds apart"


def test_unknown_kinds_reach_the_training_as_unknown(trained: SimpleNamespace) -> None:
    first, with_pseudo = trained.saw
    assert first is not None
    assert with_pseudo is not None
    assert (len(first), len(with_pseudo)) == (12, 14)  # by image_id: two of the set a, ten of the set k, two pseudo
    assert set(np.unique(first[:2])) == {-1, 0}
    assert set(np.unique(first[2:])) == {0, 1, 2}
    assert np.array_equal(with_pseudo[:12], first)
    assert (with_pseudo[12:] == -1).all()


def test_pixels_of_unknown_kind_leave_the_second_head_as_it_was() -> None:
    model = slice_network.build(Shape("resnet18", 4, 64, 2), 0)
    before = {name: value.clone() for name, value in model.network.named_parameters()}
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64)).astype(np.uint8)
    targets = np.full((2, 1, 64, 64), 255, np.uint8)
    slice_network.train(
        model, images, targets, Course(1, 1e-2), Schooling(2, (1.0,)),
        kinds=np.full((2, 64, 64), -1, np.int8), seed=0, threads=1, section="x",
    )  # fmt: skip
    for name, value in model.network.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("kinds."), name


def test_masks_that_tell_no_kinds_are_refused_by_the_settings_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"infection\.ct_slice\.kinds: no mask of a tells ground glass"):
        fit_slices(slice_rows(tmp_path, 10), {}, small_slices(kinds=True), tmp_path)
    assert not places.infection(tmp_path, "ct_slice").exists()


def test_without_the_setting_masks_by_class_train_infection_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(slice_network, "train", lambda *positional, kinds, **more: seen.append(kinds))
    said = fit_slices(rows_with_kinds(tmp_path, 10), {}, small_slices(sets=["k"]), tmp_path)
    assert seen == [None]
    assert "by_kind" not in said
    network = infection.load(places.infection(tmp_path, "ct_slice")).final["ct_slice"]
    assert network.model.shape.classes == 1
    with pytest.raises(ValueError, match="infection alone"):
        network.kinds_of_picture(two_kinds(0)[0])


def test_kinds_on_the_networks_square_lie_inside_its_infection(tmp_path: Path) -> None:
    for row in rows_with_kinds(tmp_path, 3):
        square = read_square((row["image_id"], row["path"], tuple(row["infection_mask"])), 96)
        assert square.kinds.shape == (96, 96)
        assert set(np.unique(square.kinds)) <= {-1, 0, 1, 2}
        assert np.array_equal(square.kinds != 0, square.infection > 0)
        assert (square.kinds == -1).sum() <= 0.05 * (square.infection > 0).sum()  # where the two roundings disagree


def test_real_masks_by_class_are_read_by_number_and_not_by_colour(realdata: Path) -> None:
    root = realdata / "covid-semiseg"
    if not root.is_dir():
        pytest.skip("covid-semiseg is not among the real sets here")
    labelled = [row for row in semiseg_rows(root) if isinstance(row, Row) and row.infection_mask]
    assert len(labelled) == 50
    shown = {1: 0, 2: 0}
    folder = "LungInfection-Train/Doctor-label/GT"
    for row in labelled:
        whole = read_whole((row.key, str(row.path), row.infection_mask, ()))
        with Image.open(row.infection_mask[0].split("@")[0]) as stored:
            assert stored.mode == "P"
            indices = np.asarray(stored)
        assert whole.kinds is not None
        assert np.array_equal(whole.kinds, indices), "a palette's colours were read for its classes"
        assert set(np.unique(whole.kinds)) <= {0, 1, 2}
        binary = row.path.parents[3] / folder / f"{row.path.stem}.png"
        assert np.array_equal(whole.kinds > 0, read_mask([binary], whole.grey.shape)), "a class lies outside"
        for kind in shown:
            shown[kind] += bool((whole.kinds == kind).any())
    assert min(shown.values()) >= 10, shown
    assert read_classes([str(binary)], whole.grey.shape) is None


def test_the_settings_of_volumes_refuse_kinds() -> None:
    with pytest.raises(ValueError, match="kinds is for pictures"):
        Infection.model_validate({"ct_volume": {"slices": {"kinds": True}}})
