"""Each rule about sets, cohorts and tasks fires on what it is for, and is silent on a clean cohort."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from chestflow.config import Cohort, Task
from chestflow.data.confounding_rules import guessing
from chestflow.data.dataset_rules import compatible
from chestflow.data.findings import RULES, Dataset
from chestflow.data.sources.base import SourceInfo
from chestflow.data.validation import RULE_MODULES, run_rules, twins
from tests.data.manifests import dataset, fired, manifest, mixed, row, thumbnails_by


def with_twins(data: Dataset) -> Dataset:
    return Dataset(**{**vars(data), "twins": twins(data.manifest, thumbnails_by)})


def rejects(source: str, count: int) -> pd.DataFrame:
    ids = [f"{source}-{i:012x}" for i in range(count)]
    return pd.DataFrame({"source": source, "image_id": ids, "reason": "truncated", "detail": ""})


def info(**counts: int) -> dict[str, SourceInfo]:
    return {"alpha": SourceInfo("alpha", "Alpha", ("cxr",), tuple(counts), counts, "CC0", True, "nowhere")}


def many(label: str, count: int, start: int = 1000, **more: object) -> list[dict[str, object]]:
    return [row(start + i, label, **more) for i in range(count)]


#: rule -> a dataset in which it fires, and a word of the sentence
FIRING = {
    "cohort_is_empty": (dataset(mixed(), cohorts={"chests": Cohort(sets=["beta"], modality="cxr")}), "no labelled"),
    "one_class_only": (dataset(many("covid19", 20)), "none of rest"),
    "too_few_images": (dataset(many("covid19", 20) + many("normal", 4, 0)), "4 images of rest"),
    "labels_disagree": (
        with_twins(dataset([*mixed(), row(90, "normal", sha256="a" * 64), row(91, "covid19", sha256="a" * 64)])),
        "1 pair of images shows",
    ),
    "labels_disagree_elsewhere": (
        with_twins(
            dataset(
                [*mixed(), row(90, "normal", phash="f0f0f0f0f0f0f0f0"), row(1, "covid19", "beta", phash="f0" * 8)],
                cohorts={"chests": Cohort(sets=["alpha"], modality="cxr")},
            )
        ),
        "outside any one cohort",
    ),
    "counts_differ_from_published": (dataset(mixed(), infos=info(normal=20, covid19=21)), "covid19 20 of 21"),
    "official_split_is_another": (
        dataset(
            mixed(official_split="train"), infos={"alpha": replace(info()["alpha"], official_counts={"train": 39})}
        ),
        "train 40 of 39",
    ),
    "value_of_one_class": (
        dataset(mixed() + many("covid19", 12, color_mode="RGBA")),
        "12 images of covid19 and none of the rest have RGBA",
    ),
    "volumes_of_grey_values": (
        dataset(
            [*mixed(modality="ct_volume"), row(90, modality="ct_volume", color_mode="L", spacing_mm=None)],
            cohorts={"chests": Cohort(sets=["alpha"], modality="ct_volume")},
        ),
        "1 volume of 8-bit grey values",
    ),
    "labels_left_out": (dataset(mixed() + many("cap", 3)), "cap 3"),
    "identical_files": (dataset([*mixed(), row(90, sha256="a" * 64), row(91, sha256="a" * 64)]), "in 1 group of"),
    "patients_unknown": (dataset(mixed() + many("normal", 4, patient_id=None)), "9%"),
    "patients_in_two_classes": (
        dataset([*mixed(), row(90, patient_id="alpha-00"), row(91, "covid19", patient_id="alpha-00")]),
        "1 patient with",
    ),
    "files_rejected": (dataset(mixed(), rejects=rejects("alpha", 2)), "2 images"),
    "most_files_damaged": (dataset(mixed(), rejects=rejects("alpha", 60)), "60%"),
    "official_split_conflicts": (
        dataset(
            [
                *mixed(),
                row(90, patient_id="alpha-00", official_split="train"),
                row(91, patient_id="alpha-00", official_split="test"),
            ]
        ),
        "1 patient and 0 files",
    ),
    "licence_restricts_use": (
        dataset(mixed() + many("normal", 3, licence="CC BY-NC 4.0", commercial_use=False)),
        "3 images",
    ),
    "positive_rare": (dataset(many("normal", 200) + many("covid19", 6, 0)), "2.9%"),
    "class_follows_property": (
        dataset(many("normal", 30) + many("covid19", 30, 0, color_mode="RGBA")),
        "the colour mode alone",
    ),
    "class_in_one_source": (dataset(many("normal", 20) + many("covid19", 20, source="beta")), "comes from beta"),
    "children_only_among_negatives": (
        dataset(mixed(age=40.0) + many("normal", 6, age=4.0)),
        "6 images of the other classes are of children",
    ),
}


@pytest.mark.parametrize("name", sorted(FIRING))
def test_each_rule_fires(name: str) -> None:
    data, words = FIRING[name]
    found = fired(name, data)
    assert len(found) == 1
    assert words in found[0].message
    assert found[0].rule == name
    assert found[0].severity == RULES[name].severity


def test_no_rule_is_without_a_firing_case() -> None:
    assert RULE_MODULES
    assert set(FIRING) == set(RULES)


def test_a_clean_cohort_is_silent() -> None:
    assert run_rules(with_twins(dataset(mixed(age=40.0), infos=info(normal=20, covid19=20)))) == []


def test_severities_that_stop_the_pipeline() -> None:
    critical = {name for name, rule in RULES.items() if rule.severity == "critical"}
    assert critical == {
        "cohort_is_empty",
        "one_class_only",
        "too_few_images",
        "labels_disagree",
        "most_files_damaged",
    }


def test_files_that_a_copy_does_not_hold_do_not_stop_it() -> None:
    missing = rejects("alpha", 60).assign(reason="missing_file")
    data = dataset(mixed(), rejects=missing)
    assert fired("most_files_damaged", data) == []
    assert len(fired("files_rejected", data)) == 1


def test_a_faulty_mask_rejects_no_image() -> None:
    data = dataset(mixed())
    faulty = rejects("alpha", 20).assign(image_id=data.manifest["image_id"].head(20).to_numpy())
    assert fired("files_rejected", dataset(mixed(), rejects=faulty)) == []


def test_a_subset_is_not_held_against_published_counts() -> None:
    data = dataset(mixed(), infos=info(normal=500, covid19=125), complete=False)
    assert fired("counts_differ_from_published", data) == []


@pytest.mark.parametrize("column", ["file_format", "site", "size", "source"])
def test_each_property_is_tried(column: str) -> None:
    told: dict[str, object] = {"file_format": "jpeg", "site": "north", "size": 512, "source": "beta"}
    more = {"width": 512, "height": 512} if column == "size" else {column: told[column]}
    data = dataset(many("normal", 30) + many("covid19", 30, 0, **more))
    properties = {finding.figures["property"] for finding in fired("class_follows_property", data)}
    assert column in properties


def test_a_view_that_one_source_leaves_unsaid_tells_nothing() -> None:
    rows = many("normal", 30) + many("covid19", 30, 0, view="PA")
    assert fired("class_follows_property", dataset(rows)) == []
    rows = many("normal", 30, view="AP") + many("covid19", 30, 0, view="PA")
    (found,) = fired("class_follows_property", dataset(rows))
    assert found.figures["property"] == "view"


def test_three_classes_are_each_held_against_the_rest() -> None:
    rows = many("normal", 30, 0) + many("pneumonia", 30, 100) + many("covid19", 30, 200, site="cohen")
    task = Task(cohort="chests", classes={"a": ["normal"], "b": ["pneumonia"], "covid19": ["covid19"]})
    found = fired("class_follows_property", dataset(rows, tasks={"three": task}))
    assert [(f.figures["property"], f.figures["class"]) for f in found] == [("site", "covid19")]


def test_guessing_by_a_value_of_ones_own_gains_nothing() -> None:
    """Every image of another size: remembering the sizes would score 1, leaving the patient out scores chance."""
    unique = pd.Series([f"{i}" for i in range(60)])
    classes, patients = pd.Series([True, False] * 30), pd.Series([f"p{i}" for i in range(60)])
    assert guessing(unique, classes, patients) == 0.5
    random = pd.Series(np.random.default_rng(0).integers(0, 3, 60).astype(str))
    assert guessing(random, classes, patients) < 0.7
    assert guessing(classes.map(str), classes, patients) == 1.0


def test_guessing_counts_a_patient_once() -> None:
    """One patient with 50 images of a rare format must not make the format tell the class."""
    values = pd.Series(["jpeg"] * 50 + ["png"] * 40)
    classes = pd.Series([True] * 70 + [False] * 20)
    patients = pd.Series(["one"] * 50 + [f"p{i}" for i in range(40)])
    assert guessing(values, classes, patients) < 0.55


def test_broader_labels_do_not_contradict() -> None:
    assert compatible("pneumonia", "viral_pneumonia")
    assert compatible("bacterial_pneumonia", "cap")
    assert compatible(None, "covid19")
    assert not compatible("viral_pneumonia", "bacterial_pneumonia")
    assert not compatible("pneumonia", "covid19")


def test_twins_are_found_behind_a_broader_label() -> None:
    same = {"sha256": "b" * 64}
    table = manifest(
        [row(1, "pneumonia", **same), row(2, "viral_pneumonia", **same), row(3, "bacterial_pneumonia", **same)]
    )
    first, second = twins(table, thumbnails_by)
    assert {frozenset(table.loc[[a, b], "label"]) for a, b in zip(first, second, strict=True)} == {
        frozenset({"viral_pneumonia", "bacterial_pneumonia"})
    }
