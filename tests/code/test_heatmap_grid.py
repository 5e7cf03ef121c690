"""Heat maps side by side: the same images for every run, chosen without looking at answers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chestflow.config import Params, parse
from chestflow.evaluation.heatmap_grid import CELL, chosen, grids
from chestflow.files import write_json, write_parquet
from chestflow.imaging.overlay import LESION, blend
from chestflow.segmentation import places

SIDE, COUNT = 16, 10
TARGET = np.arange(COUNT) % 2
IDS = [f"phantom-{i:02d}" for i in range(COUNT)]


def params(runs: dict[str, str]) -> Params:
    """X-ray runs by name, each with its task."""
    classes = {"rest": ["normal"], "covid19": ["covid19"]}
    return parse(
        {
            "profile": "tiny",
            "data": {"sets": ["phantom"]},
            "cohorts": {"cxr": {"sets": ["phantom"], "modality": "cxr"}},
            "recipes": {"small": {"modality": "cxr", "size": [SIDE, SIDE]}},
            "tasks": {"one": {"cohort": "cxr", "classes": classes}, "two": {"cohort": "cxr", "classes": classes}},
            "runs": {name: {"method": "covidnet", "task": task, "recipe": "small"} for name, task in runs.items()},
        }
    )


def write(out: Path, settings: Params, without_maps: tuple[str, ...] = ()) -> None:
    """A pack with a lesion in every positive image, and answers and maps of each run in an order of its own."""
    rng = np.random.default_rng(0)
    pack = out / "packs" / "small"
    pack.mkdir(parents=True)
    np.save(pack / "data.npy", rng.integers(0, 90, (COUNT, SIDE, SIDE)).astype(np.uint8))
    masks = np.zeros((COUNT, SIDE, SIDE), np.uint8)
    masks[TARGET == 1, 4:10, 4:10] = 6
    np.save(pack / "masks.npy", masks)
    index = {"row": range(COUNT), "image_id": IDS, "has_lung": False, "has_infection": TARGET == 1}
    write_parquet(pack / "index.parquet", pd.DataFrame(index))
    write_json(pack / "recipe.json", {"modality": "cxr", "size": [SIDE, SIDE]})
    table = pd.DataFrame({"image_id": IDS, "ratio": np.nan, "outlined": TARGET == 1})
    write_parquet(places.segmented(out, "cxr") / "ratio.parquet", table)
    for place, run in enumerate(settings.runs):
        order = rng.permutation(COUNT)
        ids = np.array(IDS)[order]
        folder = out / "predictions" / run / "0"
        p = pd.Series(order / 100 + place / 10)
        write_parquet(folder / "test.parquet", pd.DataFrame({"image_id": ids, "p_rest": 1 - p, "p_covid19": p}))
        if run not in without_maps:
            heat = np.zeros((COUNT, 4, 4), np.float16)
            heat[np.arange(COUNT), order % 4, order // 4] = 1.0  # each image has its hot cell, whatever its place
            np.save(folder / "attention.npy", heat)
        cases = pd.DataFrame({"fold": 0, "image_id": IDS, "target": TARGET})
        write_parquet(out / "evaluate" / run / "cases.parquet", cases)


def decoded(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_every_run_shows_the_same_images_with_its_own_answers(tmp_path: Path) -> None:
    settings = params({"first": "one", "second": "one"})
    write(tmp_path, settings)
    (found,) = grids(settings, tmp_path)
    assert (found.task, found.runs) == ("one", ["first", "second"])
    assert [truth for truth, _ in found.rows] == ["covid19"] * 3 + ["rest"] * 2
    shown = [1, 5, 9, 0, 8]  # evenly among 1, 3, 5, 7, 9, then the ends of 0, 2, 4, 6, 8
    for number, (_, cells) in zip(shown, found.rows, strict=True):
        assert [cell.caption.split(": ")[-1] for cell in cells[1:]] == [
            f"p = {number / 100:.2f}",
            f"p = {number / 100 + 0.1:.2f}",
        ]
        # both runs drew the same map over the same picture, though their files list the images differently
        assert cells[1].content == cells[2].content
        assert decoded(cells[0].content).shape == (CELL, CELL, 3)


def test_heat_and_lesion_lie_where_they_are(tmp_path: Path) -> None:
    settings = params({"first": "one", "second": "one"})
    write(tmp_path, settings)
    picture = np.load(tmp_path / "packs" / "small" / "data.npy")[9]
    _, cells = grids(settings, tmp_path)[0].rows[2]
    np.testing.assert_array_equal(decoded(cells[0].content), blend(picture, None, size=CELL))
    warm = decoded(cells[1].content).astype(int) - decoded(cells[0].content)
    y, x = np.unravel_index(warm[..., 0].argmax(), warm.shape[:2])
    assert (y * 4 // CELL, x * 4 // CELL) == (9 % 4, 9 // 4)
    assert (decoded(cells[1].content) == LESION).all(-1).any()
    healthy = grids(settings, tmp_path)[0].rows[3][1]
    assert not (decoded(healthy[1].content) == LESION).all(-1).any()


def test_tasks_stand_apart_and_one_run_alone_needs_no_grid(tmp_path: Path) -> None:
    settings = params({"first": "one", "second": "two", "third": "two", "fourth": "two"})
    write(tmp_path, settings, without_maps=("third",))
    (found,) = grids(settings, tmp_path)
    assert (found.task, found.runs) == ("two", ["second", "fourth"])
    assert "Without maps: third." in found.note


@pytest.mark.parametrize(("positives", "others", "expected"), [(3, 2, [1, 5, 9, 0, 8]), (1, 0, [1]), (9, 9, 10)])
def test_choice_is_even_and_never_repeats(positives: int, others: int, expected: object) -> None:
    cases = pd.DataFrame({"image_id": IDS, "target": TARGET}).sample(frac=1, random_state=0)
    found = chosen(cases, positives, others)["image_id"].tolist()
    if isinstance(expected, int):
        assert len(found) == len(set(found)) == expected
    else:
        assert found == [IDS[i] for i in expected]


def test_a_class_without_images_leaves_the_other() -> None:
    cases = pd.DataFrame({"image_id": IDS, "target": 1})
    assert len(chosen(cases, 3, 2)) == 3
