"""What a run takes over is seen in MLflow and on the card: whose weights, which tau, who marks the infection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chestflow.files import sha256_file, write_json
from chestflow.serving.bundle import Bundle, Member
from chestflow.tracking import attachments, provenance, registry, runs, store, taken
from chestflow.tracking.model_card import card
from chestflow.tracking.packing import trained_on
from tests import stores
from tests.code import taken_outs

PARAMS = taken_outs.params()
OUT = Path("out")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = stores.give(tmp_path / "repository", monkeypatch)
    taken_outs.write(made / "out", "tuned")
    return made


def test_tags_say_whose_weights_and_which_tau(root: Path) -> None:
    sha256 = sha256_file(OUT / "train/base/0/weights.safetensors")
    assert taken.tags(PARAMS, "known", 0, OUT) == {
        "uses.global": "base", "uses.global.sha256": sha256[:16], "uses.tau": "0.6000",
    }  # fmt: skip
    assert taken.tags(PARAMS, "base", 0, OUT)["uses.weights"] == "moco"
    assert len(taken.tags(PARAMS, "base", 0, OUT)["uses.weights.sha256"]) == 16
    (OUT / "train/base/0/weights.safetensors").unlink()
    assert taken.tags(PARAMS, "known", 0, OUT)["uses.global.sha256"] == "unknown"


def test_a_training_run_carries_them(root: Path) -> None:
    with runs.training_run(PARAMS, "known", 0) as run:
        pass
    found = store.connect().get_run(run.run_id).data
    assert found.tags["uses.tau"] == "0.6000"
    assert found.params["uses.global"] == "base"
    assert found.tags["run"] == "known"
    assert found.tags["mlflow.source.name"] == "stages/train.py"


def test_an_attempt_with_other_weights_taken_over_is_not_resumed(root: Path) -> None:
    with pytest.raises(KeyboardInterrupt), runs.training_run(PARAMS, "known", 0) as first:
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), runs.training_run(PARAMS, "known", 0) as second:
        raise KeyboardInterrupt
    assert second.run_id == first.run_id
    (OUT / "train/base/0/weights.safetensors").write_bytes(b"trained again")
    with runs.training_run(PARAMS, "known", 0) as third:
        pass
    assert third.run_id != first.run_id


def files_of(run_id: str, folder: str) -> set[str]:
    return {Path(item.path).name for item in store.connect().list_artifacts(run_id, folder)}


def test_register_attaches_the_search_and_the_pretraining_to_the_runs_that_use_them(root: Path) -> None:
    client, run_ids = store.connect(), {}
    for run in ("base", "known"):
        with runs.training_run(PARAMS, run, 0) as record:
            run_ids[run] = record.run_id
        write_json(OUT / f"tune/calibration/{run}/0.json", {"temperature": 1.0, "trials": []})
        write_json(OUT / f"evaluate/{run}.json", {"mlflow_metrics": {}})
        registry._attach(client, PARAMS, run, {}, {(run, 0): run_ids[run]}, run_ids[run], OUT)
    known, base = (client.get_run(run_ids[run]).data.metrics for run in ("known", "base"))
    assert (known["tau"], known["tau_value"]) == (0.6, 0.9)
    assert (known["tau_paper"], known["tau_paper_value"]) == (0.75, 0.85)
    assert files_of(run_ids["known"], "tau") == {"tau.json", "curve.csv", "curve.png", "trials.csv"}
    assert "tau" not in base
    assert (base["pretraining/loss"], base["pretraining/found"]) == (5.5, 0.4)
    assert files_of(run_ids["base"], "pretraining") == {"pretrain.json", "history.csv", "loss.png"}
    assert files_of(run_ids["known"], "pretraining") == set()


def test_where_the_papers_tau_stays_its_own_value_is_shown(root: Path) -> None:
    with runs.training_run(PARAMS, "known", 0) as run:
        pass
    write_json(OUT / "tune/tau/known/0.json", taken_outs.tau("paper"))
    attachments.attach_tau(store.connect(), run.run_id, OUT / "tune/tau/known/0.json")
    found = store.connect().get_run(run.run_id).data.metrics
    assert (found["tau"], found["tau_value"], found["tau_tuned"], found["tau_tuned_value"]) == (0.75, 0.85, 0.6, 0.9)


def test_the_infection_evidence_is_attached_for_the_modality_that_is_read(root: Path) -> None:
    client = store.connect()
    with runs.training_run(PARAMS, "known", 0) as run:
        pass
    attachments.attach_infection(client, run.run_id, OUT, "ct_volume")
    assert files_of(run.run_id, "infection") == set()
    attachments.attach_infection(client, run.run_id, OUT, "ct_slice")
    said = taken.infection_evidence(OUT, "ct_slice")
    found = client.get_run(run.run_id).data.metrics
    for end, key in attachments.ENDS:
        assert found[f"infection/ct_slice/dice{end}"] == pytest.approx(said["figures"]["dice"][key])
    assert found["infection/ct_slice/ratio_error"] == pytest.approx(said["ratio_error"]["mae"])
    pictures = {"confidence_by_pixel.png", "dice_on_held_slices.png"}
    assert files_of(run.run_id, "infection") == {"evidence.json", "pseudo.json", *pictures}
    kept = json.loads(Path(client.download_artifacts(run.run_id, "infection/pseudo.json", str(root))).read_text())
    assert [row["round"] for row in kept["final"]] == [1, 2]


def bundle() -> Bundle:
    return Bundle(
        "known", "toys", "t", "ct_slice", ("rest", "covid19"), {"name": "small", "size": [64, 64]},
        (Member("known", 0, "single"),), None, 1.0, 0.5, {}, False, (), "unstated",
    )  # fmt: skip


def test_the_card_names_all_of_it(root: Path) -> None:
    uses = taken.card_lines(PARAMS, ["base", "known"], [0], OUT)
    uses["infection where no mask is given"] = taken.infection_row(OUT, "ct_slice")
    text = card(bundle(), {}, {}, {}, uses)
    sha256 = sha256_file(OUT / "train/base/0/weights.safetensors")[:16]
    assert f"| global branch of known | run base, weights {sha256} |" in text
    assert "| start of the backbones of base | pretraining moco without labels on 2 images of cohort slices" in text
    assert "| tau of known | fold 0: 0.60 (tuned) |" in text
    dice = taken.infection_evidence(OUT, "ct_slice")["figures"]["dice"]
    assert f"Dice {dice['value']:.3f} ({dice['lo']:.3f} to {dice['hi']:.3f}) on 6 images that it did not see" in text
    assert text.index("tau of known") < text.index("## Test figures")
    assert taken.infection_row(OUT, "ct_volume") == ""
    write_json(OUT / "tune/tau/known/0.json", taken_outs.tau("paper"))
    assert taken.card_lines(PARAMS, ["known"], [0], OUT)["tau of known"] == "fold 0: 0.75 (the paper's; 0.60 was tuned)"


def test_the_card_of_a_run_that_takes_nothing_over_is_as_it_was() -> None:
    assert card(bundle(), {}, {}, {}, {}) == card(bundle(), {}, {}, {})


def test_what_taught_the_segmenter_counts_as_learned_from(root: Path) -> None:
    roles = provenance.infection_images(PARAMS, OUT, "ct_slice").set_index("image_id")["role"].to_dict()
    assert roles == {"a-0": "masks", "a-1": "masks", "b-0": "unlabelled"}
    assert provenance.infection_images(PARAMS, OUT, "ct_volume").empty
    assert provenance.infection_images(taken_outs.params(infection={}), OUT, "ct_slice").empty
    alone = taken_outs.params(cohorts={"slices": {"sets": ["covid_ct"], "modality": "ct_slice"}})
    splits = provenance.read_parquet(OUT / "splits.parquet")
    splits[splits["image_id"] != "b-0"].to_parquet(OUT / "splits.parquet")
    assert set(trained_on(alone, "known", OUT)["image_id"]) == {"a-0", "a-1"}
    assert set(trained_on(alone, "known", OUT, infection=True)["image_id"]) == {"a-0", "a-1", "b-0"}
