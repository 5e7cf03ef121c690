"""Each gate passes and fails on its own figure, missing evidence never passes, and two gates hold whatever is said."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from chestflow.config import Gates, Promote
from chestflow.serving.bundle import Bundle, Member
from chestflow.tracking import evidence, gates
from tests.model.toy_models import evaluation

BUNDLE = Bundle(
    name="plain",
    profile="toys",
    task="covid_vs_rest",
    modality="cxr",
    classes=("rest", "covid19"),
    recipe={"name": "small", "size": [64, 64]},
    members=(Member("plain", 0, "single"),),
    weighting=None,
    temperature=1.0,
    threshold=0.5,
    segmentation={},
    phantom=False,
    licences=("CC0-1.0",),
    commercial_use="yes",
)


def _failed(found: dict[str, Any], bundle: Bundle = BUNDLE, target: str = "staging", **more: Any) -> list[str]:
    return [v.gate for v in gates.judge(found, bundle, Gates(), target, **more) if not v.passed]


def _with(name: str, **values: float | None) -> dict[str, Any]:
    found = evaluation()
    found["served"]["image"][name] = {**found["served"]["image"][name], **values}
    return found


def test_good_evidence_passes_every_gate() -> None:
    assert _failed(evaluation()) == []
    assert _failed(evaluation(), target="production") == []


@pytest.mark.parametrize(
    ("found", "gate"),
    [
        (_with("auroc", lo=0.79), "AUROC, lower bound"),
        (_with("auroc", lo=None), "AUROC, lower bound"),
        (_with("sensitivity", lo=0.59), "sensitivity, lower bound"),
        (_with("ece", value=0.16), "calibration error (ECE)"),
        (_with("ece", value=None), "calibration error (ECE)"),
        (evaluation(subgroups=None), "worst subgroup AUROC"),
        (evaluation(shortcut={"source_auroc": {"value": 0.97}}), "source AUROC"),
    ],
)
def test_each_gate_fails_alone(found: dict[str, Any], gate: str) -> None:
    assert _failed(found) == [gate]


def test_an_empty_evaluation_passes_nothing_but_the_unmeasured_shortcut() -> None:
    assert len(_failed({})) == 4


def test_bounds_themselves_pass() -> None:
    assert _failed(_with("auroc", lo=0.80)) == []
    assert _failed(_with("ece", value=0.15)) == []


def test_the_worst_subgroup_counts_only_where_it_is_large_enough() -> None:
    small = {"by": "sex", "group": "F", "images": 19, "served": {"auroc": {"value": 0.1}}}
    assert _failed(evaluation(subgroups=[small])) == []
    assert _failed(evaluation(subgroups=[{**small, "images": 20}])) == ["worst subgroup AUROC"]
    assert _failed(evaluation(subgroups=[small]), smallest_subgroup=19) == ["worst subgroup AUROC"]


def test_a_large_subgroup_without_an_auroc_is_named_as_not_judged() -> None:
    ill = {"by": "age", "group": "65 and over", "images": 40, "served": {"auroc": {"value": None}}}
    fine = {"by": "sex", "group": "F", "images": 30, "served": {"auroc": {"value": 0.9}}}
    small = {"by": "sex", "group": "M", "images": 3, "served": {"auroc": {"value": None}}}
    verdict = gates.judge(evaluation(subgroups=[ill, fine, small]), BUNDLE, Gates(), "staging")[3]
    assert verdict.passed
    assert verdict.note == "sex: F (30 images); not judged, AUROC undefined: age: 65 and over (40 images)"
    nothing = gates.judge(evaluation(subgroups=[ill]), BUNDLE, Gates(), "production")[3]
    assert (nothing.value, nothing.passed) == ("not measured", False)
    assert "age: 65 and over (40 images)" in nothing.note


def test_a_means_members_need_no_gate_of_a_uniform_network() -> None:
    assert _failed({**evaluation(), "members": {"runs": {"plain": {"auroc": {"value": 0.5, "lo": 0.4}}}}}) == []


def test_production_needs_a_subgroup_that_can_be_judged() -> None:
    small = {"by": "sex", "group": "F", "images": 19, "served": {"auroc": {"value": 0.99}}}
    assert _failed(evaluation(subgroups=[small])) == []
    assert _failed(evaluation(subgroups=[small]), target="production") == ["worst subgroup AUROC"]


def test_an_ensembles_uniform_network_must_hold_by_itself() -> None:
    def ensemble(lo: float | None) -> dict[str, Any]:
        return {**evaluation(), "members": {"uniform": {"auroc": {"value": 0.9, "lo": lo, "hi": 0.95}}}}

    assert _failed(ensemble(0.85)) == []
    assert _failed(ensemble(0.70)) == ["AUROC without a ratio, lower bound"]
    assert _failed(ensemble(None)) == ["AUROC without a ratio, lower bound"]


def test_phantoms_never_pass_for_production_and_do_for_staging() -> None:
    phantom = replace(BUNDLE, phantom=True)
    assert _failed(evaluation(), phantom) == []
    assert _failed(evaluation(), phantom, "production") == ["trained on"]
    assert _failed(evaluation(), phantom, "production", research_use=True) == ["trained on"]


@pytest.mark.parametrize("use", ["no", "unstated"])
def test_licences_hold_for_production_unless_research_use_is_declared(use: str) -> None:
    bundle = replace(BUNDLE, commercial_use=use)
    assert _failed(evaluation(), bundle) == []
    assert _failed(evaluation(), bundle, "production") == ["licences of the data"]
    assert _failed(evaluation(), bundle, "production", research_use=True) == []


def test_production_asks_for_more_than_staging() -> None:
    defaults = Promote()
    found = _with("auroc", lo=0.85)
    staging = gates.judge(found, BUNDLE, defaults.staging, "staging")
    production = gates.judge(found, BUNDLE, defaults.production, "production")
    assert staging[0].passed
    assert not production[0].passed


def test_only_the_two_last_gates_are_absolute() -> None:
    verdicts = gates.judge(evaluation(), BUNDLE, Gates(), "production")
    assert [v.gate for v in verdicts if v.absolute] == ["trained on", "licences of the data"]


def test_figures_come_with_intervals_and_undefined_ones_with_their_reason() -> None:
    found = evidence.figures(evaluation())
    assert found["auroc"] == evidence.Figure(0.95, 0.85, 0.99)
    assert math.isnan(found["mcc"].value)
    assert found["mcc"].why == "one class only"


def test_metrics_for_mlflow() -> None:
    assert evidence.mlflow_metrics(evaluation()) == {"test/auroc": 0.95, "test/auroc_lo": 0.85, "test/auroc_hi": 0.99}
    assert evidence.fold_metrics(evaluation(), 1) == {"test/auroc": 0.91}
    assert evidence.fold_metrics(evaluation(), 7) == {}
