"""Aliases move only through the gates, every attempt is in the journal, and a registered version is one content."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from chestflow.config import Params, Promote
from chestflow.errors import ConfigError, DataError, GateRefused, TrackingError
from chestflow.files import read_json, write_json
from chestflow.tracking import lookup, packing, promotions, registry, store
from tests import stores
from tests.model import toy_models

NAME = "chestflow-plain"


@dataclass
class Registry:
    """A store with two versions of one model: the first passes staging, the second's AUROC is too low."""

    root: Path
    params: Params
    ended: int  # when the run of the first version was over, in ms

    def alias(self, name: str) -> int | None:
        found = lookup.aliases_of(store.connect(), NAME).get(name)
        return None if found is None else int(found)


def end_of_its_run() -> int:
    """When the run ended that the model's first version came from, in ms."""
    client = store.connect()
    run_id = lookup.resolve(client, "plain/1").tags["run_ids"].split(",")[0]
    return int(client.get_run(run_id).info.end_time)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with pytest.MonkeyPatch.context() as patch:
        root = stores.give(tmp_path_factory.mktemp("registry"), patch)
        shutil.copytree(toy_models.trained() / "out", root / "out")
        params = toy_models.params()
        registry.register(params, "plain")
        ended = end_of_its_run()
        toy_models.write_evidence(root / "out", params, "plain", auroc_lo=0.7)
        registry.register(params, "plain")
        yield Registry(root, params, ended)


@pytest.fixture
def clean(made: Registry) -> Registry:
    """Without aliases other than candidate, and without a journal."""
    client = store.connect()
    for alias in lookup.aliases_of(client, NAME):
        if alias != "candidate":
            client.delete_registered_model_alias(NAME, alias)
    (made.root / promotions.JOURNAL).unlink(missing_ok=True)
    return made


def test_registering_again_finds_the_version(made: Registry) -> None:
    again = registry.register(made.params, "plain")
    assert not again.created
    assert again.version.number == 2
    assert made.alias("candidate") == 2


def test_registering_does_not_lengthen_the_run(made: Registry) -> None:
    assert end_of_its_run() == made.ended


def test_a_version_is_linked_to_what_made_it(made: Registry) -> None:
    version = lookup.resolve(store.connect(), "plain/1")
    run_id = read_json(made.root / "out/train/plain/0/run.json")["mlflow_run_id"]
    assert run_id is None  # trained without MLflow: the run was restored
    assert version.tags["phantom"] == "yes"
    assert version.tags["commercial_use"] == "yes"
    assert version.tags["licences"] == "CC0-1.0"
    assert version.tags["profile"] == "toys"
    assert version.tags["data_md5"].startswith("manifest:")
    assert registry.versions_of_run(version.tags["run_ids"]) == [f"{NAME} v1", f"{NAME} v2"]
    run = store.connect().get_run(version.run_id)
    assert run.data.tags["restored"] == "yes"
    assert run.data.metrics["test/auroc_lo"] == 0.7
    assert run.data.metrics["tuned/calibration-0/threshold"] == 0.5
    listed = {f.path for f in store.connect().list_artifacts(version.run_id, "evaluation")}
    assert listed == {"evaluation/evaluation.json", "evaluation/roc.png"}
    tuning = {f.path for f in store.connect().list_artifacts(version.run_id, "tuning")}
    assert tuning == {"tuning/calibration-0.csv", "tuning/calibration-0.png"}
    card = store.connect().get_model_version(NAME, "1").description
    assert "PHANTOM MODEL, not for patients" in card
    assert "| AUROC | 0.950 (0.850 to 0.990) |" in card
    assert "Matthews correlation | undefined: one class only" in card
    assert "of 12, rate" in card


def test_a_version_that_passes_is_promoted_and_its_tags_say_by_whom(clean: Registry) -> None:
    shown = []
    done = promotions.promote("plain", "staging", Promote(), number=1, show=lambda v, verdicts: shown.extend(verdicts))
    assert done.outcome == "promoted"
    assert clean.alias("staging") == 1
    assert len(shown) == 5
    tags = store.connect().get_model_version(NAME, "1").tags
    (entry,) = promotions.history("plain")
    assert tags["staging.who"] == entry["who"]
    assert tags["staging.override"] == "none"
    assert tags["staging.evidence_sha256"] == entry["evidence_sha256"]
    assert [gate["passed"] for gate in entry["gates"]] == [True] * 5


def test_a_failing_gate_keeps_the_alias_and_is_recorded(clean: Registry) -> None:
    promotions.promote("plain", "staging", Promote(), number=1)
    with pytest.raises(GateRefused, match="AUROC, lower bound; `--override"):
        promotions.promote("plain", "staging", Promote())
    assert clean.alias("staging") == 1
    assert [entry["outcome"] for entry in promotions.history()] == ["promoted", "refused"]


def test_an_override_needs_a_reason_and_keeps_it(clean: Registry) -> None:
    with pytest.raises(ConfigError, match="reason"):
        promotions.promote("plain", "staging", Promote(), override=" ")
    done = promotions.promote("plain", "staging", Promote(), override="only model we have")
    assert clean.alias("staging") == 2
    assert done.override == "only model we have"
    assert store.connect().get_model_version(NAME, "2").tags["staging.override"] == "only model we have"
    assert promotions.history()[-1]["override"] == "only model we have"


def test_no_override_takes_a_phantom_model_to_production(clean: Registry) -> None:
    lax = Promote(production=Promote().staging, research_use=True)
    with pytest.raises(GateRefused, match="trained on; no override passes this"):
        promotions.promote("plain", "production", lax, number=1, override="please")
    assert clean.alias("production") is None
    assert promotions.history()[-1]["outcome"] == "refused"


def test_roll_back_and_repeat(clean: Registry) -> None:
    promotions.promote("plain", "staging", Promote(), override="trial")
    assert promotions.promote("plain", "staging", Promote(), number=1).outcome == "rolled back"
    assert promotions.promote("plain", "staging", Promote(), number=1).outcome == "unchanged"
    assert clean.alias("staging") == 1
    assert [entry["from_version"] for entry in promotions.history()] == [None, 2, 1]


def test_the_versions_own_evidence_is_judged_and_not_what_lies_in_out(clean: Registry) -> None:
    path = clean.root / "out/evaluate/plain.json"
    before = path.read_bytes()
    write_json(path, {})
    try:
        assert promotions.promote("plain", "staging", Promote(), number=1).outcome == "promoted"
    finally:
        path.write_bytes(before)


def test_the_journal_only_grows(clean: Registry) -> None:
    promotions.promote("plain", "staging", Promote(), number=1)
    first = (clean.root / promotions.JOURNAL).read_bytes()
    promotions.promote("plain", "staging", Promote(), number=1)
    second = (clean.root / promotions.JOURNAL).read_bytes()
    assert second.startswith(first)
    assert len([json.loads(line) for line in second.splitlines()]) == 2
    with (clean.root / promotions.JOURNAL).open("a") as stream:
        stream.write("{half")
    with pytest.raises(TrackingError, match="line 3 is damaged"):
        promotions.history()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: promotions.promote("nothing", "staging", Promote()), f"chestflow-nothing is unknown; .*{NAME}"),
        (lambda: promotions.promote("plain", "staging", Promote(), number=9), "no version 9; it has v2, v1"),
        (lambda: lookup.resolve(store.connect(), "plain@best"), r"no alias best; it has candidate \(v2\)"),
        (lambda: lookup.resolve(store.connect(), "plain@"), "names no model"),
    ],
)
def test_what_is_unknown_says_what_exists(clean: Registry, call: object, message: str) -> None:
    with pytest.raises(TrackingError, match=message):
        call()  # type: ignore[operator]


def test_other_mistakes_are_clear(clean: Registry) -> None:
    with pytest.raises(ConfigError, match="promote to staging or production"):
        promotions.promote("plain", "latest", Promote())
    with pytest.raises(ConfigError, match=r"neither a run nor an ensemble; params\.yaml has plain"):
        registry.register(clean.params, "other")
    (clean.root / "out/tune/calibration/sized/0.json").unlink()
    with pytest.raises(DataError, match=r"calibration/sized/0\.json is missing"):
        registry.register(clean.params, "sized")


def test_what_was_learned_from_is_read_from_the_splits_and_not_from_todays_parameters(clean: Registry) -> None:
    out = clean.root / "out"
    assert packing.describe(clean.params, "plain", out).phantom
    renamed = toy_models.params("hospital")
    assert packing.describe(renamed, "plain", out).phantom
    manifest = out / "manifest.parquet"
    before = manifest.read_bytes()
    rows = pd.read_parquet(manifest)
    try:
        rows.assign(source="hospital", licence=None, commercial_use=None).to_parquet(manifest, index=False)
        described = packing.describe(clean.params, "plain", out)
    finally:
        manifest.write_bytes(before)
    assert not described.phantom
    assert described.commercial_use == "unstated"


def test_changed_evidence_does_not_count(clean: Registry) -> None:
    models = [p for p in (clean.root / "mlruns").rglob("evaluation.json") if p.parent.name == "bundle"]
    kept = [(path, path.read_bytes()) for path in models]
    try:
        for path, content in kept:
            path.write_bytes(content.replace(b"0.", b"0.9", 1))
        with pytest.raises(TrackingError, match="is not what was registered and does not count"):
            promotions.promote("plain", "staging", Promote(), number=1)
    finally:
        for path, content in kept:
            path.write_bytes(content)


def test_a_version_whose_files_are_gone_says_so(clean: Registry) -> None:
    models = [p for p in (clean.root / "mlruns").rglob("evaluation.json") if p.parent.name == "bundle"]
    kept = [(path, path.read_bytes()) for path in models]
    try:
        for path in models:
            path.unlink()
        with pytest.raises(TrackingError, match=r"files of chestflow-plain v1 cannot be fetched"):
            promotions.promote("plain", "staging", Promote(), number=1)
    finally:
        for path, content in kept:
            path.write_bytes(content)
