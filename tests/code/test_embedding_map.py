"""The map of test slices: the same bytes each time, groups stay groups, the right slices in the right order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from chestflow.config import Params, parse
from chestflow.evaluation import embedding_map as module
from chestflow.evaluation.embedding_map import embedding_map, project
from chestflow.files import EMBEDDING_FILE, write_json, write_parquet
from chestflow.training import embedding

SIDE, COUNT, WIDTH = 24, 30, 12
TARGET = np.arange(COUNT) % 2
IDS = [f"slice-{i:02d}" for i in range(COUNT)]


def params(**changes: Any) -> Params:
    run = {"method": "baselines", "task": "covid", "recipe": "small", **changes}
    return parse(
        {
            "profile": "tiny",
            "data": {"sets": ["phantom"]},
            "cohorts": {"slices": {"sets": ["phantom"], "modality": "ct_slice"}},
            "recipes": {"small": {"modality": "ct_slice", "size": [SIDE, SIDE]}},
            "tasks": {"covid": {"cohort": "slices", "classes": {"rest": ["normal"], "covid19": ["covid19"]}}},
            "runs": {"one": run},
        }
    )


def clusters(count: int = COUNT, width: int = WIDTH, gap: float = 4.0) -> np.ndarray:
    """Two groups by class."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, width)) + gap * (np.arange(count) % 2)[:, None]


def write(out: Path, stored: bool = True) -> np.ndarray:
    """A pack whose slice i is of grey value 4 i, its infection in the middle, and predictions in another order."""
    rng = np.random.default_rng(0)
    pack = out / "packs" / "small"
    pack.mkdir(parents=True)
    data = np.repeat(np.arange(COUNT), SIDE * SIDE).reshape(COUNT, SIDE, SIDE) * 4
    np.save(pack / "data.npy", data.astype(np.uint8))
    masks = np.zeros((COUNT, SIDE, SIDE), np.uint8)
    masks[:, 8:16, 8:16] = 2
    np.save(pack / "masks.npy", masks)
    index = {"row": range(COUNT), "image_id": IDS, "has_lung": False, "has_infection": TARGET == 1}
    write_parquet(pack / "index.parquet", pd.DataFrame(index))
    write_json(pack / "recipe.json", {"modality": "ct_slice", "size": [SIDE, SIDE]})
    order = rng.permutation(COUNT)
    folder = out / "predictions" / "one" / "0"
    p = (order + 0.5) / COUNT  # the higher a slice's number, the more probable
    write_parquet(
        folder / "test.parquet", pd.DataFrame({"image_id": np.array(IDS)[order], "p_rest": 1 - p, "p_covid19": p})
    )
    if stored:
        embedding.store(folder / EMBEDDING_FILE, clusters()[order].astype(np.float32), "ct_slice", 2)
    heat = np.zeros((COUNT, 4, 4), np.float16)
    heat[:, 0, 0] = 1
    np.save(folder / "attention.npy", heat)
    cases = pd.DataFrame({"fold": 0, "image_id": IDS, "target": TARGET})
    write_parquet(out / "evaluate" / "one" / "cases.parquet", cases)
    return order


def test_the_same_vectors_and_seed_give_the_same_map_to_the_bit() -> None:
    first, again = (project(clusters(), 3) for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.shape == (COUNT, 2)
    assert np.array_equal(first, again)


def test_groups_stay_groups() -> None:
    found = project(clusters(), 0)
    assert found is not None
    centres = np.stack([found[c == TARGET].mean(0) for c in (0, 1)])
    nearest = np.linalg.norm(found[:, None] - centres, axis=2).argmin(1)
    assert (nearest == TARGET).all()


@pytest.mark.parametrize("count", [6, 7, 10])
def test_few_points_lower_the_perplexity(count: int) -> None:
    found = project(clusters(count), 0)
    assert found is not None
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    "vectors", [clusters(5), np.ones((COUNT, WIDTH)), clusters(width=1)], ids=["few", "all alike", "one value"]
)
def test_what_cannot_be_drawn_is_left_out(vectors: np.ndarray) -> None:
    assert project(vectors, 0) is None


def test_coinciding_points_do_no_harm() -> None:
    vectors = clusters()
    vectors[:10] = vectors[0]
    found = project(vectors, 0)
    assert found is not None
    assert np.isfinite(found).all()


def test_the_figure_is_small_and_its_bytes_do_not_change(tmp_path: Path) -> None:
    write(tmp_path)
    first, again = (embedding_map("one", params(), tmp_path) for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.png == again.png
    assert len(first.png) < 200_000
    picture = cv2.imdecode(np.frombuffer(first.png, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[1] > picture.shape[0] > 300
    assert "12 values before the last layer" in first.caption
    assert "30 test slices of fold 0" in first.caption


def test_it_draws_each_slices_own_vector_and_shows_slices_from_the_least_to_the_most_probable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    seen: dict[str, Any] = {}

    def draw(
        points: pd.DataFrame, xy: np.ndarray, shown: list[int], strips: list[np.ndarray], classes: list[str]
    ) -> bytes:
        seen.update(points=points, shown=shown, strips=strips, classes=classes)
        return b""

    monkeypatch.setattr(module, "_draw", draw)
    monkeypatch.setattr(module, "project", lambda vectors, seed: seen.update(vectors=vectors) or vectors[:, :2])
    assert embedding_map("one", params(), tmp_path) is not None
    assert seen["points"]["image_id"].tolist() == IDS
    assert seen["points"]["target"].tolist() == TARGET.tolist()
    np.testing.assert_allclose(seen["vectors"], clusters(), atol=0.01)  # though the files are in another order
    numbers = [int(IDS[i].split("-")[1]) for i in seen["shown"]]
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1], len(numbers)) == (0, COUNT - 1, 6)
    assert seen["classes"] == ["rest", "covid19"]
    side = module.THUMB
    for number, strip in zip(numbers, seen["strips"], strict=True):
        assert strip.shape == (side, 3 * side + 8, 3)
        assert (strip[:, :side] == 4 * number).all()  # the slice itself
        last = strip[:, 2 * side + 8 :]
        if number % 2:  # infection is known: inside as it is, outside darker
            assert (last[side // 2, side // 2] == 4 * number).all()
            assert (last[2, 2] == number).all()
        else:
            assert (last == 0).all()


def test_the_text_of_a_fusion_says_which_vector_it_is(tmp_path: Path) -> None:
    write(tmp_path)
    about = module._about("one", 0, params(config={"answers": "fusion"}), 6656, pd.DataFrame({"image_id": IDS}))
    assert "6656 values together" in about
    assert "global, the heat-map and both sides of the infected branch" in about
    assert "1644" in about


def test_the_text_says_whose_attention_it_is_and_of_how_many_folds() -> None:
    points = pd.DataFrame({"image_id": IDS})
    plain = module._about("one", 0, params(), 12, points)
    assert "slice, attention, infected region" in plain
    assert "test slices of fold 0; p" in plain
    config = {"tau": 0.5, "backbone": "resnet18", "channels": 1, "answers": "fusion"}
    several = params(method="multi_knowledge", config=config).model_copy(update={"folds": [0, 1, 2]})
    about = module._about("one", 0, several, 4 * 512, points)
    assert "attention (Grad-CAM of the global branch" in about
    assert "of fold 0 alone, of 3 (each fold's network has vectors of its own)" in about


def test_no_vectors_no_figure(tmp_path: Path) -> None:
    write(tmp_path, stored=False)
    assert embedding_map("one", params(), tmp_path) is None
    assert embedding_map("an_ensemble", params(), tmp_path) is None


def test_many_points_are_thinned_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr(module, "MOST", 10)
    found = embedding_map("one", params(), tmp_path)
    assert found is not None
    assert "10 test slices" in found.caption


@pytest.mark.parametrize(
    ("modality", "classes", "width", "kept"),
    [("ct_slice", 2, 8, True), ("cxr", 2, 8, False), ("ct_slice", 8, 8, False), ("ct_slice", 2, 16_385, False)],
)
def test_what_training_stores(modality: str, classes: int, width: int, kept: bool, tmp_path: Path) -> None:
    vectors = np.ones((3, width), np.float32)
    vectors[0, 0] = 1e9
    embedding.store(tmp_path / EMBEDDING_FILE, vectors, modality, classes)
    assert (tmp_path / EMBEDDING_FILE).exists() == kept
    if kept:
        found = np.load(tmp_path / EMBEDDING_FILE)
        assert found.dtype == np.float16
        assert found.shape == (3, width)
        assert np.isfinite(found).all()
