"""What an evaluation, the promotion gate, MLflow and the report make of a task's shortcuts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from chestflow.config import Gates
from chestflow.evaluation import shortcuts as stage
from chestflow.evaluation.report_shortcuts import shortcuts as shown
from chestflow.evaluation.shortcut_section import flat, section
from chestflow.evaluation.shortcut_views import VIEWS
from chestflow.tracking import gates
from tests.code.shortcut_sets import answer, auroc, cohort
from tests.code.test_gates import BUNDLE
from tests.model.toy_models import evaluation


@pytest.fixture(scope="module")
def marked() -> dict[str, Any]:
    return answer(*cohort(marked=True)) | {"available": True}


@pytest.fixture(scope="module")
def confounded() -> dict[str, Any]:
    return answer(*cohort(marked=True, lesion=True, confounded=True)) | {"available": True}


def verdict(found: dict[str, Any], target: str = "staging", keeps: tuple[str, ...] = ("all",)) -> gates.Verdict:
    evidence = evaluation(shortcut=section(found, list(keeps)), subgroups=[])
    judged = gates.judge(evidence, BUNDLE, Gates(), target)
    return next(v for v in judged if v.gate == "source AUROC")


def test_one_source_gives_no_number_and_says_why() -> None:
    found = answer(*cohort(sources=1)) | {"available": True}
    assert found["source"] == {"defined": False, "reason": "one source: nothing to tell apart"}
    assert found["source_within_label"]["covid19"] == {"defined": False, "reason": "one source"}
    assert not found["confounded"]
    assert "one source (a)" in found["sentence"]
    assert section(found, ["all"])["source_auroc"]["value"] is None
    for target in gates.TARGETS:
        one = verdict(found, target)
        assert (one.passed, one.value, one.note) == (True, "not measured", "one source: nothing to judge")


@pytest.mark.parametrize("target", gates.TARGETS)
def test_the_gate_refuses_what_coincides_however_badly_the_border_tells_it(target: str) -> None:
    found = answer(*cohort(lesion=True, confounded=True)) | {"available": True}
    one = verdict(found, target)
    assert float(one.value) < 0.95
    assert not one.passed
    assert not one.absolute
    assert "coincide" in one.note


def test_the_gate_passes_a_source_that_is_told_but_helps_nobody(marked: dict[str, Any]) -> None:
    one = verdict(marked)
    assert one.passed == (marked["class_from_source"]["hi"] <= gates.UNRELATED)
    unrelated = {**marked, "class_from_source": {"value": 0.51, "lo": 0.5, "hi": 0.58}}
    assert verdict(unrelated).passed
    assert "does not help" in verdict(unrelated).note
    related = {**marked, "class_from_source": {"value": 0.7, "lo": 0.6, "hi": 0.8}}
    assert float(verdict(related).value) > 0.95
    assert not verdict(related).passed
    assert "balanced accuracy 0.700" in verdict(related).note


def test_a_network_that_never_sees_the_border_is_judged_by_what_it_sees(marked: dict[str, Any]) -> None:
    related = {**marked, "class_from_source": {"value": 0.7, "lo": 0.6, "hi": 0.8}}
    assert section(related, ["lungs"])["judged"] == "lungs"
    assert verdict(related, keeps=("lungs",)).passed
    assert section(related, ["lungs", "all"])["judged"] == "border"
    assert not verdict(related, keeps=("lungs", "all")).passed


def test_what_was_not_measured_is_not_judged() -> None:
    found = stage.unmeasured("covid_vs_cap", "ct", "CT volumes are not evaluated for shortcuts")
    one = verdict(found, "production")
    assert (one.passed, one.value, one.note) == (True, "not measured", "CT volumes are not evaluated for shortcuts")
    assert flat(section(found, ["all"])) == {}


def test_names_for_mlflow(marked: dict[str, Any]) -> None:
    numbers = flat(section(marked, ["all"]))
    assert numbers["shortcut/source_auroc"] == auroc(marked["source"], "border")["value"]
    assert numbers["shortcut/source_auroc_lungs_lo"] == auroc(marked["source"], "lungs")["lo"]
    assert numbers["shortcut/task_auroc_lungs_removed"] == auroc(marked["task_from"], "lungs_removed", "auroc")["value"]
    assert all(math.isfinite(value) for value in numbers.values())


def test_the_page_shows_each_task_once(marked: dict[str, Any], confounded: dict[str, Any]) -> None:
    def of(task: str, found: dict[str, Any]) -> dict[str, Any]:
        return {"task": task, "shortcut": section({**found, "cohort_images": found["images"]}, ["all"])}

    ct = {"task": "ct", "shortcut": stage.unmeasured("ct", "r", "CT volumes are not evaluated")}
    page = shown({"x": of("fair", marked), "y": of("fair", marked), "z": of("bad", confounded), "w": ct})
    assert [part["task"] for part in page] == ["fair", "bad", "ct"]
    assert [part["confounded"] for part in page] == [False, True, False]
    assert [len(part["tables"]) for part in page] == [3, 2, 0]
    assert len(page[0]["tables"][1].rows) == len(VIEWS)
