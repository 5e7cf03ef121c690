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
from chestflow.segmentation import places

SHAPE, COUNT = (8, 16, 16), 8
TARGET = np.array([1, 1, 1, 1, 1, 0, 0, 0])
RATIO = np.array([0.001, 0.01, 0.02, 0.04, np.nan, 0.001, 0.01, 0.04])
IDS = [f"phantom-{i:02d}" for i in range(COUNT)]
CUTS = [0.005, 0.03]
RECIPE = {"modality": "ct_volume", "size": list(SHAPE), "spacing_mm": [1.0, 1.0, 1.0]}


def params(folds: int = 1) -> Params:
    attended = {"plain": False, "even": True, "sized": True}
    return parse(
        {
            "profile": "tiny",
            "folds": list(range(folds)),
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


def write(out: Path, p: np.ndarray, without: tuple[str, ...] = ("ratio",), origin: str = "source") -> None:
    """A pack whose volumes have their lesion in slice 4, and answers ``p`` (run, image) with maps hot in slice 1."""
    pack = out / "packs" / "small"
    pack.mkdir(parents=True)
    np.save(pack / "data.npy", np.random.default_rng(0).integers(-900, 100, (COUNT, *SHAPE)).astype(np.int16))
    masks = np.zeros((COUNT, *SHAPE), np.uint8)
    masks[~np.isnan(RATIO), 4, 4:12, 4:12] = 6 if origin == "source" else 2
    np.save(pack / "masks.npy", masks)
    index = {"row": range(COUNT), "image_id": IDS, "has_lung": False, "has_infection": ~np.isnan(RATIO)}
    write_parquet(pack / "index.parquet", pd.DataFrame(index))
    write_json(pack / "recipe.json", RECIPE)
    table = pd.DataFrame({"image_id": IDS, "ratio": RATIO, "infection_from": origin})
    table["outlined"] = (origin == "source") & ~np.isnan(RATIO)
    write_parquet(places.segmented(out, "ct_volume") / "ratio.parquet", table)
    cases = pd.DataFrame({"fold": 0, "image_id": IDS, "target": TARGET, "ratio": RATIO})
    for run in params().runs:
        write_parquet(out / "evaluate" / run / "cases.parquet", cases)
    answer(out, 0, p, list(range(COUNT)), without)


def answer(out: Path, fold: int, p: np.ndarray, tested: list[int], without: tuple[str, ...] = ("ratio",)) -> None:
    """Answers ``p`` (run, image) of a fold to the images that it tests, with maps hot in slice 1."""
    for run, own in zip(params().runs, p[:, tested], strict=True):
        folder = out / "predictions" / run / str(fold)
        ids = [IDS[i] for i in tested]
        write_parquet(folder / "test.parquet", pd.DataFrame({"image_id": ids, "p_cap": 1 - own, "p_covid19": own}))
        if run not in without:
            heat = np.zeros((len(tested), 3, 4, 4), np.float16)
            heat[:, 0, 1, 1] = 1
            np.save(folder / "attention.npy", heat)


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
        "cap, ratio 0.0400, all answer falsely (fold 0)",  # the surest false answers come first
        "covid19, ratio 0.0010, all answer falsely (fold 0)",
    ]
    for _, cells in found.rows:
        assert [cell.caption.split(":")[0] for cell in cells[1:]] == found.runs
        assert cells[0].caption.startswith("slice 4 of 8")  # where the lesion is, and not where the heat is
    assert found.rows[4][1][1].caption == "plain: p = 0.10"


def test_false_answers_come_from_every_fold_with_its_own_networks(tmp_path: Path) -> None:
    write(tmp_path, ANSWERS)
    answer(tmp_path, 0, ANSWERS, [0, 1, 2, 5])
    later = np.where(TARGET == 1, 0.9, 0.1)[None].repeat(4, 0)
    later[:, 6] = [0.95, 0.97, 0.99, 0.1]
    answer(tmp_path, 1, later, [3, 4, 6, 7])
    for run in params().runs:
        cases = pd.DataFrame({"fold": [0, 0, 0, 1, 1, 0, 1, 1], "image_id": IDS, "target": TARGET, "ratio": RATIO})
        write_parquet(tmp_path / "evaluate" / run / "cases.parquet", cases)
    (found,) = volume_grids(params(folds=2), tmp_path)
    assert [label for label, _ in found.rows] == [
        "covid19, ratio 0.0010",  # the typical ones are of the first fold alone
        "covid19, ratio 0.0100",
        "cap, ratio 0.0100, all answer falsely (fold 1)",
        "covid19, ratio 0.0010, all answer falsely (fold 0)",
    ]
    assert [cell.caption for cell in found.rows[2][1][1:]] == ["plain: p = 0.95", "even: p = 0.97", "sized: p = 0.99"]
    assert "then of all folds up to 2" in found.note


def test_a_shared_test_image_is_shown_once_by_the_fold_that_is_surest(tmp_path: Path) -> None:
    write(tmp_path, ANSWERS)
    worse = ANSWERS.copy()
    worse[:, 0] = 0.02
    answer(tmp_path, 1, worse, list(range(COUNT)))
    (found,) = volume_grids(params(folds=2), tmp_path)
    false = [(label, cells[1].caption) for label, cells in found.rows if "falsely" in label]
    assert false == [
        ("covid19, ratio 0.0010, all answer falsely (fold 1)", "plain: p = 0.02"),
        ("cap, ratio 0.0400, all answer falsely (fold 0)", "plain: p = 0.80"),
    ]


def test_what_a_network_marked_has_no_line_and_chooses_no_slice(tmp_path: Path) -> None:
    write(tmp_path, ANSWERS, origin="network")
    cell = volume_grids(params(), tmp_path)[0].rows[0][1][0]
    assert not cell.caption.startswith("slice 4 of")
    blue, green, red = np.moveaxis(cv2.imdecode(np.frombuffer(cell.content, np.uint8), 1).astype(int), -1, 0)
    assert not (blue + green - 2 * red > 120).any()


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
