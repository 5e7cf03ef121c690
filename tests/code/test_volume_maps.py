"""Maps of CT runs side by side: which volumes are shown, on which slice, the same one for all networks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chestflow.config import Params, parse
from chestflow.evaluation.heatmap_grid import CELL
from chestflow.evaluation.volume_maps import failures, typical, volume_grids
from chestflow.files import write_json, write_parquet

SHAPE, COUNT = (8, 16, 16), 8
TARGET = np.array([1, 1, 1, 1, 1, 0, 0, 0])
RATIO = np.array([0.001, 0.01, 0.02, 0.04, np.nan, 0.001, 0.01, 0.04])
IDS = [f"phantom-{i:02d}" for i in range(COUNT)]
CUTS = [0.005, 0.03]
RECIPE = {"modality": "ct_volume", "size": list(SHAPE), "spacing_mm": [1.0, 1.0, 1.0]}


def params() -> Params:
    attended = {"plain": False, "even": True, "sized": True}
    return parse(
        {
            "profile": "tiny",
            "data": {"sets": ["phantom"]},
            "cohorts": {"ct": {"sets": ["phantom"], "modality": "ct_volume"}},
            "recipes": {"small": RECIPE},
            "tasks": {"one": {"cohort": "ct", "classes": {"cap": ["cap"], "covid19": ["covid19"]}}},
            "runs": {
                **{
                    name: {"method": "dual_sampling", "task": "one", "recipe": "small", "config": {"attention": on}}
                    for name, on in attended.items()
                },
                "ratio": {"method": "infection_ratio", "task": "one", "recipe": "small"},
            },
        }
    )


def write(out: Path, p: np.ndarray, without: tuple[str, ...] = ("ratio",)) -> None:
    """A pack whose volumes have their lesion in slice 4, and answers ``p`` (run, image) with maps hot in slice 1."""
    pack = out / "packs" / "small"
    pack.mkdir(parents=True)
    np.save(pack / "data.npy", np.random.default_rng(0).integers(-900, 100, (COUNT, *SHAPE)).astype(np.int16))
    masks = np.zeros((COUNT, *SHAPE), np.uint8)
    masks[~np.isnan(RATIO), 4, 4:12, 4:12] = 2
    np.save(pack / "masks.npy", masks)
    index = {"row": range(COUNT), "image_id": IDS, "has_lung": False, "has_infection": ~np.isnan(RATIO)}
    write_parquet(pack / "index.parquet", pd.DataFrame(index))
    write_json(pack / "recipe.json", RECIPE)
    cases = pd.DataFrame({"fold": 0, "image_id": IDS, "target": TARGET, "ratio": RATIO})
    for run, own in zip(params().runs, p, strict=True):
        folder = out / "predictions" / run / "0"
        write_parquet(folder / "test.parquet", pd.DataFrame({"image_id": IDS, "p_cap": 1 - own, "p_covid19": own}))
        if run not in without:
            heat = np.zeros((COUNT, 3, 4, 4), np.float16)
            heat[:, 0, 1, 1] = 1
            np.save(folder / "attention.npy", heat)
        write_parquet(out / "evaluate" / run / "cases.parquet", cases)


#: the first COVID-19 case is false for all three networks with maps, the second for two of them
ANSWERS = np.array(
    [
        [0.1, 0.2, 0.9, 0.9, 0.9, 0.1, 0.1, 0.8],
        [0.2, 0.6, 0.9, 0.9, 0.9, 0.1, 0.1, 0.9],
        [0.3, 0.4, 0.9, 0.9, 0.9, 0.1, 0.1, 0.9],
        [0.9, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1],
    ]
)


def test_a_case_of_each_ratio_group_then_what_all_answer_falsely(tmp_path: Path) -> None:
    write(tmp_path, ANSWERS)
    (found,) = volume_grids(params(), tmp_path)
    assert found.runs == ["plain", "even", "sized"]
    assert "Grad-CAM: plain; the others show their trained attention" in found.note
    assert "Without maps: ratio." in found.note
    assert [label for label, _ in found.rows] == [
        "covid19, ratio 0.0010",
        "covid19, ratio 0.0100",
        "covid19, ratio 0.0400",
        "cap, ratio 0.0400, all answer falsely",  # the surest false answers come first
        "covid19, ratio 0.0010, all answer falsely",
    ]
    for _, cells in found.rows:
        assert [cell.caption.split(":")[0] for cell in cells[1:]] == found.runs
        assert cells[0].caption.startswith("slice 4 of 8")  # where the lesion is, and not where the heat is
    assert found.rows[4][1][1].caption == "plain: p = 0.10"


def test_pictures_are_small_and_the_lesion_is_outlined(tmp_path: Path) -> None:
    write(tmp_path, ANSWERS)
    picture = cv2.imdecode(np.frombuffer(volume_grids(params(), tmp_path)[0].rows[0][1][0].content, np.uint8), 1)
    assert picture.shape == (CELL, CELL, 3)
    blue, green, red = np.moveaxis(picture.astype(int), -1, 0)
    turquoise = blue + green - 2 * red > 120
    ys, xs = np.nonzero(turquoise)
    assert abs(ys.min() - CELL // 4) < 8
    assert abs(xs.max() - CELL * 3 // 4) < 8


def test_no_false_answer_is_said(tmp_path: Path) -> None:
    write(tmp_path, np.where(TARGET == 1, 0.9, 0.1)[None].repeat(4, 0))
    (found,) = volume_grids(params(), tmp_path)
    assert len(found.rows) == 3
    assert "None was answered falsely by all." in found.note


def test_one_run_with_maps_needs_no_grid(tmp_path: Path) -> None:
    write(tmp_path, ANSWERS, without=("even", "sized", "ratio"))
    assert volume_grids(params(), tmp_path) == []


def test_the_typical_case_does_not_depend_on_answers_or_order() -> None:
    cases = pd.DataFrame({"image_id": IDS, "target": TARGET, "ratio": RATIO}).sample(frac=1, random_state=3)
    assert typical(cases, CUTS)["image_id"].tolist() == ["phantom-00", "phantom-01", "phantom-03"]


@pytest.mark.parametrize(("most", "expected"), [(0, []), (1, ["b"]), (5, ["b", "a"])])
def test_failures_are_false_for_all_and_the_surest_first(most: int, expected: list[str]) -> None:
    cases = pd.DataFrame({"image_id": list("abc")})
    surest = np.array([[0.6, 0.7], [0.9, 0.8], [1.0, 0.4]])
    assert failures(cases, surest, most)["image_id"].tolist() == expected
