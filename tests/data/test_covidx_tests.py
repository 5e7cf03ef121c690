"""COVIDx v1, v2 and v3: tests of 100, 150 and 200 a class, each inside the next, patients whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chestflow.config import Cohort, Split
from chestflow.data.assignment import whole_groups
from chestflow.data.covidx_tests import COVIDX5, VERSIONS, moved_to_test
from chestflow.data.splits import make_splits
from chestflow.errors import DataError
from tests.data.manifests import hexes, manifest, row, thumbnails_by

STEP = {"covid19": 50, "pneumonia": 50, "normal": 50}
STEPS: dict[str, list[dict[str, int]]] = {"v1": [], "v2": [STEP], "v3": [STEP, STEP]}
#: Sizes of the training patients by label: 353 COVID-19 patients, 100 of them with 2 to 7 images; 5451 with pneumonia.
PATIENTS = {
    "covid19": [1] * 253 + [2] * 76 + [3] * 14 + [7] * 10,
    "pneumonia": [1] * 5427 + [2] * 24,
    "normal": [1] * 7966,
}


def test_counts_of_the_papers_table_nested_and_with_whole_patients() -> None:
    train = pd.concat([free(sizes, label) for label, sizes in PATIENTS.items()], ignore_index=True)
    train["group_id"] += train["label"]
    assert train["label"].value_counts().to_dict() == COVIDX5["train"]
    moved: dict[str, set[int]] = {}
    for version, steps in STEPS.items():
        index, report = moved_to_test(train, steps, seed=1, cohort=f"covidx_{version}")
        test, learned = train.loc[index], train.drop(index=index)
        more = test["label"].value_counts()
        assert {label: COVIDX5["test"][label] + int(more.get(label, 0)) for label in STEP} == dict.fromkeys(
            STEP, VERSIONS[version]
        )
        expected = {label: count + 100 - VERSIONS[version] for label, count in COVIDX5["train"].items()}
        assert learned["label"].value_counts().to_dict() == expected  # the table of the paper
        assert not set(test["group_id"]) & set(learned["group_id"])
        assert [step["covid19"]["images"] for step in report] == [50] * len(steps)
        moved[version] = set(index)
    assert moved["v1"] < moved["v2"] < moved["v3"]
    assert moved["v3"] != set(moved_to_test(train, STEPS["v3"], seed=2, cohort="x")[0])


def test_cohorts_of_one_list_have_nested_tests_in_every_fold() -> None:
    """The same at a tenth of the size, through the split."""
    rows: list[dict[str, Any]] = []
    for label, sizes in PATIENTS.items():
        for place, size in enumerate(sizes[:: 10 if label == "covid19" else 40]):
            patient = f"covidx-{hexes(f'{label}{place}', 12)}"
            rows += [
                row(len(rows) + n, label, "covidx", patient_id=patient, official_split="train") for n in range(size)
            ]
        rows += [row(len(rows) + n, label, "covidx", official_split="test") for n in range(10)]
    step = dict.fromkeys(STEP, 5)
    cohorts = {
        f"covidx_{version}": Cohort(sets=["covidx"], modality="cxr", moved_to_test=[step] * len(steps))
        for version, steps in STEPS.items()
    }
    frame = manifest(rows)
    table, report = make_splits(frame, cohorts, Split(k=2), seed=1, thumbnails=thumbnails_by)
    table = table.merge(frame[["image_id", "label", "patient_id"]], on="image_id")
    tests: dict[str, set[str]] = {}
    for place, name in enumerate(cohorts):
        mine = table[table["cohort"] == name]
        for _, fold in mine.groupby("fold"):
            test, learned = fold[fold["role"] == "test"], fold[fold["role"].isin(["train", "tune"])]
            assert test["label"].value_counts().to_dict() == dict.fromkeys(STEP, 10 + 5 * place)
            assert not set(test["patient_id"]) & set(learned["patient_id"])
            assert len(test) + len(learned) == len(frame)
            assert tests.setdefault(name, set(test["image_id"])) == set(test["image_id"])
    assert tests["covidx_v1"] < tests["covidx_v2"] < tests["covidx_v3"]
    assert report["cohorts"]["covidx_v3"]["test"] == "official"
    shuffled, _ = make_splits(frame[::-1], {"x": cohorts["covidx_v3"]}, Split(k=2), seed=1, thumbnails=thumbnails_by)
    # Whatever the order of the rows and the cohort's name.
    assert set(shuffled.loc[shuffled["role"] == "test", "image_id"]) == tests["covidx_v3"]


def test_a_cohort_without_an_official_test_may_have_one_by_number() -> None:
    rows = [row(number, "covid19" if number % 2 else "normal") for number in range(40)]
    cohort = Cohort(sets=["alpha"], modality="cxr", moved_to_test=[{"covid19": 4, "normal": 4}])
    table, report = make_splits(manifest(rows), {"x": cohort}, Split(k=3), seed=1, thumbnails=thumbnails_by)
    assert table[table["role"] == "test"].groupby("fold").size().tolist() == [8, 8, 8]
    assert report["cohorts"]["x"]["test"] == "moved"


def free(sizes: list[int], label: str = "covid19") -> pd.DataFrame:
    group = np.repeat(np.arange(len(sizes)), sizes)
    names = [f"{label}{number:05d}" for number in range(len(group))]
    return pd.DataFrame({"image_id": names, "group_id": [f"g{number:03d}" for number in group], "label": label})


def test_numbers_that_no_whole_patients_have_are_one_clear_line() -> None:
    with pytest.raises(
        DataError, match=r"cohort x: .* 5 images of covid19 in step 2, .* 12 images .* add to 4 at most"
    ):
        moved_to_test(free([2] * 8), [{"covid19": 4}, {"covid19": 5}], seed=1, cohort="x")
    with pytest.raises(DataError, match="0 images outside the test add to 0"):
        moved_to_test(free([1] * 8), [{"normal": 1}], seed=1, cohort="x")


def test_a_patient_with_two_labels_stays() -> None:
    rows = free([2, 2, 2, 2])
    rows.loc[rows["group_id"] == "g000", "label"] = ["covid19", "normal"]
    moved, report = moved_to_test(rows, [{"covid19": 6}], seed=1, cohort="x")
    assert set(rows.loc[moved, "group_id"]) == {"g001", "g002", "g003"}
    assert report == [{"covid19": {"images": 6, "groups": 3}}]
    with pytest.raises(DataError, match="add to 6 at most"):
        moved_to_test(rows, [{"covid19": 7}], seed=1, cohort="x")


@given(st.lists(st.integers(1, 7), min_size=1, max_size=14), st.integers(1, 30), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_a_subset_sum_is_exact_or_the_best_there_is(sizes: list[int], target: int, seed: int) -> None:
    array = np.array(sizes)
    chosen = whole_groups(array, target, seed)
    sums = {0}
    for size in sizes:
        sums |= {total + size for total in sums}
    assert array[chosen].sum() == max(total for total in sums if total <= target)
    assert (whole_groups(array, target, seed) == chosen).all()


def test_other_seeds_choose_others() -> None:
    sizes = np.ones(100, int)
    first, second = (whole_groups(sizes, 10, seed) for seed in (1, 2))
    assert first.sum() == second.sum() == 10
    assert (first != second).any()
