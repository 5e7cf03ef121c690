"""Shortcuts: a source written into the border, a lesion in the lungs, a hole's shape, each found where it is alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from chestflow.config import Params, parse
from chestflow.data.manifest import conform
from chestflow.errors import DataError
from chestflow.evaluation import shortcuts as stage
from chestflow.evaluation.shortcut_probe import ask, out_of_fold
from chestflow.evaluation.shortcut_views import VIEWS, describe
from chestflow.files import write_parquet
from chestflow.segmentation import masks as mask_files
from chestflow.segmentation import places
from tests.code.shortcut_sets import SIZE, answer, auroc, chance, cohort, lungs


@pytest.fixture(scope="module")
def marked() -> dict[str, Any]:
    return answer(*cohort(marked=True)) | {"available": True}


@pytest.fixture(scope="module")
def confounded() -> dict[str, Any]:
    return answer(*cohort(marked=True, lesion=True, confounded=True)) | {"available": True}


def test_a_source_in_the_border_is_found_there_and_nowhere_else(marked: dict[str, Any]) -> None:
    source = marked["source"]
    assert source["among"] == ["a", "b"]
    for view in ("image", "border", "lungs_removed", "box_removed"):
        assert auroc(source, view)["lo"] > 0.9, view
    for view in ("lungs", "lung_shape", "lung_box"):
        assert chance(auroc(source, view)), view
    assert source["chance"] == {"auroc": 0.5, "macro_auroc": 0.5, "balanced_accuracy": 0.5}
    assert not marked["confounded"]


def test_a_source_that_has_nothing_to_do_with_the_class_helps_nobody(marked: dict[str, Any]) -> None:
    assert all(chance(auroc(marked["task_from"], view, "auroc")) for view in VIEWS)
    assert marked["class_from_source"]["value"] < 0.6
    for label in ("normal", "covid19"):
        assert auroc(marked["source_within_label"][label], "border")["value"] > 0.9


def test_a_fair_set_is_at_chance() -> None:
    found = answer(*cohort(lesion=True, seed=3))
    assert all(chance(auroc(found["source"], view)) for view in VIEWS)
    low, high = (auroc(found["source"], "border")[end] for end in ("lo", "hi"))
    assert low <= 0.5 <= high


def test_a_lesion_in_the_lungs_is_gone_with_them() -> None:
    task = answer(*cohort(lesion=True))["task_from"]
    assert auroc(task, "image", "auroc")["lo"] > 0.7
    assert auroc(task, "lungs", "auroc")["lo"] > 0.7
    for view in ("lungs_removed", "box_removed", "border", "lung_shape", "lung_box"):
        assert chance(auroc(task, view, "auroc")), view


def test_the_shape_of_the_hole_is_told_from_what_is_left_around_it() -> None:
    task = answer(*cohort(shaped=True))["task_from"]
    assert auroc(task, "lungs_removed", "auroc")["lo"] > 0.9
    assert auroc(task, "lung_shape", "auroc")["lo"] > 0.9
    for view in ("box_removed", "lung_box", "border", "image"):
        assert chance(auroc(task, view, "auroc")), view


def test_class_and_source_that_coincide_are_said_to(confounded: dict[str, Any]) -> None:
    assert confounded["confounded"] is True
    assert confounded["class_from_source"]["value"] == 1
    assert "coincide" in confounded["sentence"]
    assert all(not part["defined"] for part in confounded["source_within_label"].values())
    for view in VIEWS:
        same = ("auroc", "balanced_accuracy")
        assert [auroc(confounded["source"], view, f)["value"] for f in same] == pytest.approx(
            [auroc(confounded["task_from"], view, f)["value"] for f in same]
        )


def test_no_group_is_ever_split() -> None:
    """Copies of a picture share a group and a random class: only a probe that saw the copies could tell it."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(40, 60)), 4, axis=0).astype(np.float32)
    y, group = np.repeat(rng.permutation(40) % 2, 4), np.repeat(np.arange(40), 4)
    names = ["a", "b"]
    fair = ask(x, y, group, y, names, seed=0, resamples=60)
    split = ask(x, y, np.arange(160), y, names, seed=0, resamples=60)
    assert fair["auroc"]["value"] < 0.7
    assert split["auroc"]["value"] > 0.95
    p = out_of_fold(x, y, group, y, 0)
    assert np.allclose(p.sum(1), 1)


def test_a_figure_says_when_it_has_too_few_groups() -> None:
    table, seen = cohort(60, sources=3)
    rare = table["group_id"].isin(table.loc[table["source"] == "c", "group_id"].unique()[4:])
    keep = ~(rare & (table["source"] == "c"))
    found = answer(table[keep].reset_index(drop=True), [one for one, kept in zip(seen, keep, strict=True) if kept])
    assert found["sources_left_out"] == ["c"]
    assert found["source"]["among"] == ["a", "b"]
    assert [line["groups"] for line in found["sources"]] == [10, 10, 4]
    few, seen = cohort(12)
    small = answer(few, seen)["task_from"]["views"]["image"]
    assert small["defined"] is False
    assert small["reason"] == "5 groups each are needed, and rest has 3, covid19 has 3"


def test_images_without_lungs_count_only_where_none_are_needed() -> None:
    table, seen = cohort(80)
    for one in seen[:10]:
        one |= dict.fromkeys(("lungs", "lungs_removed", "box_removed", "lung_shape", "lung_box"))
    found = answer(table, seen)
    assert found["without_lungs"] == 10
    assert {view: part["images"] for view, part in found["task_from"]["views"].items()} == {
        view: 80 if view in ("image", "border") else 70 for view in VIEWS
    }
    for one in seen:
        one |= dict.fromkeys(("lungs", "lungs_removed", "box_removed", "lung_shape", "lung_box"))
    none = answer(table, seen)["task_from"]["views"]
    assert not none["lungs"]["defined"]
    assert none["border"]["defined"]


def test_three_classes_and_three_sources_give_means() -> None:
    table, seen = cohort(180, marked=True, sources=3)
    found = answer(table, seen)
    assert found["source"]["chance"]["balanced_accuracy"] == pytest.approx(1 / 3)
    border = found["source"]["views"]["border"]
    assert 0.6 < border["macro_auroc"]["value"] < 1  # a and c look alike


@pytest.mark.parametrize("seed", range(3))
def test_the_class_from_the_source_is_the_best_rule_over_sources(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, y = rng.integers(0, 3, 50), rng.integers(0, 2, 50)
    table = pd.DataFrame({"source": source.astype(str), "target": y, "group_id": np.arange(50)})
    best = 0.0
    for rule in range(8):
        says = (rule >> source) & 1
        best = max(best, ((says[y == 1] == 1).mean() + (says[y == 0] == 0).mean()) / 2)
    found = stage.class_from_source(table, 1, 100, np.random.default_rng(0))
    assert found.value == pytest.approx(best)
    assert found.lo <= found.hi


def test_holes_leave_no_edge_and_no_area_in_the_histograms() -> None:
    flat_picture = np.full((SIZE, SIZE), 90, dtype=np.uint8)
    numbers = describe(flat_picture, ~lungs())
    whole = describe(flat_picture, np.ones_like(lungs()))
    assert np.allclose(numbers[-50:], whole[-50:])


def test_drawing_takes_whole_groups() -> None:
    table, _ = cohort(60)
    few = stage.drawn(table, 20, np.random.default_rng(0))
    assert len(few) == 20
    assert (few["group_id"].value_counts() == 2).all()
    assert stage.drawn(table, 60, np.random.default_rng(0)) is table


def files(folder: Path, modality: str = "cxr") -> tuple[Params, Path]:
    """X-rays on disk with splits: 40 groups of a cohort, one external set, one excluded image, one of no class."""
    out, rng, rows, splits = folder / "out", np.random.default_rng(0), [], []
    for number in range(44):
        image_id, path = f"set-{number:04d}", folder / f"{number}.png"
        pixels = rng.normal(120, 10, (60, 60))
        pixels[2:5, 2:9] += 80 * (number % 2)
        cv2.imwrite(str(path), np.clip(pixels, 0, 255).astype(np.uint8))
        bits = cv2.resize(lungs().astype(np.uint8), (60, 60), interpolation=cv2.INTER_NEAREST)
        mask_files.write(places.masks(out, modality), image_id, bits)
        label = "other_infection" if number == 42 else ("normal", "covid19")[number // 2 % 2]
        site = "north" if number % 2 else None  # the others' source is their set
        role = {40: "external", 41: "excluded"}.get(number, ("train", "tune", "test")[number % 3])
        rows.append({
            "image_id": image_id, "modality": modality, "path": str(path), "source": "phantom", "label": label,
            "site": site,
        })  # fmt: skip
        group = f"g-{number}"
        splits += [{"cohort": "c", "fold": f, "image_id": image_id, "group_id": group, "role": role} for f in (0, 1)]
    write_parquet(out / "manifest.parquet", conform(pd.DataFrame(rows)))
    write_parquet(out / "splits.parquet", pd.DataFrame(splits))
    volume = {"size": [8, 48, 48], "spacing_mm": [1.0, 1.0, 1.0]} if modality == "ct_volume" else {"size": [48, 48]}
    params = parse({
        "profile": "tiny", "data": {"sets": ["phantom"]}, "cohorts": {"c": {"sets": ["phantom"], "modality": modality}},
        "recipes": {"small": {"modality": modality, **volume}},
        "tasks": {"t": {"cohort": "c", "classes": {"rest": ["normal"], "covid19": ["covid19"]}}},
        "runs": {"r": {"method": "covidnet", "task": "t", "recipe": "small"}}, "evaluate": {"bootstrap": 60},
    })  # fmt: skip
    return params, out


def test_the_stage_gives_the_same_bytes_from_one_and_from_two_processes(tmp_path: Path) -> None:
    params, out = files(tmp_path)
    written = []
    for workers in (1, 2, 1):
        stage.shortcuts("t", "small", params, out, workers)
        written.append((out / "shortcuts" / "t.json").read_bytes())
    assert written[0] == written[1] == written[2]
    found = json.loads(written[0])
    assert (found["images"], found["groups"], found["cohort_images"]) == (41, 41, 41)
    assert found["source"]["among"] == ["north", "phantom"]
    assert auroc(found["source"], "border")["value"] > 0.9
    assert str(tmp_path) not in written[0].decode()


def test_volumes_are_said_not_to_be_measured(tmp_path: Path) -> None:
    params, out = files(tmp_path, "ct_volume")
    stage.shortcuts("t", "small", params, out)
    found = json.loads((out / "shortcuts" / "t.json").read_text())
    assert found["available"] is False
    assert found["reason"] == "CT volumes are not evaluated for shortcuts"


def test_a_broken_image_is_named_and_never_its_path(tmp_path: Path) -> None:
    params, out = files(tmp_path)
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="image set-0003 cannot be read") as caught:
        stage.shortcuts("t", "small", params, out, 1)
    assert str(tmp_path) not in str(caught.value)
