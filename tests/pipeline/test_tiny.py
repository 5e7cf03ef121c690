"""The whole DAG on the tiny profile: complete, quiet when nothing changed, and precise when something did."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.pipeline.conftest import Repository

XRAYS = ("covidnet_r18_d", "mag_sd_r18", "ac_covidnet")
SLICES = ("slice_resnet18", "multi_knowledge")
VOLUMES = ("infection_ratio", "ds_uniform", "ds_balanced", "ds_plain")
RUNS = (*XRAYS, *SLICES, *VOLUMES)
NAMES = (*RUNS, "dual_sampling", "cxr_mean")
#: Networks that look: the ratio alone is no picture.
WITH_MAPS = tuple(run for run in RUNS if run != "infection_ratio")


def _changed(tiny: Repository) -> set[str]:
    return set(json.loads(tiny.run("dvc", "status", "--json").stdout))


@pytest.fixture
def params(tiny: Repository):
    """params.yaml as text; put back afterwards."""
    path = tiny.root / "params.yaml"
    before = path.read_text()
    yield path
    path.write_text(before)


def test_these_are_all_of_the_profile(tiny: Repository) -> None:
    values = yaml.safe_load((tiny.root / "params.yaml").read_text())
    assert {*values["runs"], *values["ensembles"]} == set(NAMES)


def test_every_contracted_file_is_there(tiny: Repository) -> None:
    out = tiny.root / "out"
    files = ["manifest.parquet", "rejects.csv", "pooling.json", "validation.json", "splits.parquet"]
    for modality in ("cxr", "ct_slice", "ct_volume"):
        files += [f"segment/{modality}/ratio.parquet"]
    for modality in ("ct_slice", "ct_volume"):
        files += [f"infection/{modality}/{f}" for f in ("infection.json", f"{modality}.safetensors", "evidence.json")]
    files += [f"pretrain/slices_moco/{f}" for f in ("weights.safetensors", "history.csv", "pretrain.json")]
    for run in RUNS:
        files += [f"train/{run}/0/{f}" for f in ("weights.safetensors", "model.json", "history.csv", "run.json")]
    for run in WITH_MAPS:
        files += [f"predictions/{run}/0/attention.npy"]
    for name in NAMES:
        files += [f"predictions/{name}/0/tune.parquet", f"predictions/{name}/0/test.parquet"]
        files += [f"tune/calibration/{name}/0.json", f"evaluate/{name}.json"]
    files += ["tune/tau/multi_knowledge/0.json", "tau/multi_knowledge/0.json"]
    files += ["tune/w/dual_sampling/0.json", "tune/w/cxr_mean/0.json", "report/index.html"]
    missing = [f for f in files if not (out / f).is_file()]
    assert not missing


def test_what_a_run_takes_over_is_what_the_earlier_stages_made(tiny: Repository) -> None:
    out = tiny.root / "out"
    described = {run: json.loads((out / f"train/{run}/0/model.json").read_text())["input"]["uses"] for run in RUNS}
    chosen = json.loads((out / "tau/multi_knowledge/0.json").read_text())["tau"]
    search = json.loads((out / "tune/tau/multi_knowledge/0.json").read_text())
    assert len(search["trials"]) == 2
    assert described["multi_knowledge"]["tau"] == chosen == search["tau"]
    assert described["multi_knowledge"]["global"]["config"]["network"] == "resnet18"
    theirs = load_file(out / "train/slice_resnet18/0/weights.safetensors")
    held = load_file(out / "train/multi_knowledge/0/weights.safetensors")
    same = [name for name, values in theirs.items() if torch.equal(held[f"global_branch.network.{name}"], values)]
    assert sorted(same) == sorted(theirs)
    stages = yaml.safe_load((tiny.root / "dvc.lock").read_text())["stages"]
    deps = {dep["path"] for dep in stages["train@slice_resnet18-0"]["deps"]}
    assert "out/pretrain/slices_moco/weights.safetensors" in deps


def test_a_run_without_attention_has_maps_but_trains_none(tiny: Repository) -> None:
    columns = {
        run: set(pd.read_csv(tiny.root / f"out/train/{run}/0/history.csv").columns)
        for run in ("ds_plain", "ds_uniform")
    }
    assert "train_attention" in columns["ds_uniform"]
    assert "train_attention" not in columns["ds_plain"]


def test_test_predictions_carry_no_label(tiny: Repository) -> None:
    for name in NAMES:
        test = pd.read_parquet(tiny.root / f"out/predictions/{name}/0/test.parquet")
        tune = pd.read_parquet(tiny.root / f"out/predictions/{name}/0/tune.parquet")
        assert "target" not in test.columns
        assert tune["target"].isin([0, 1]).all()
        assert not set(test["image_id"]) & set(tune["image_id"])
        assert test["p_covid19"].between(0, 1).all()


def test_nothing_to_do_is_quick_and_changes_nothing(tiny: Repository) -> None:
    before = (tiny.root / "dvc.lock").read_bytes()
    done = tiny.run("dvc", "repro")
    assert "Running stage" not in done.stdout
    assert "up to date" in done.stdout + done.stderr
    assert (tiny.root / "dvc.lock").read_bytes() == before
    assert 0 < tiny.seconds["dvc repro"] < 10  # of processor time


def test_git_is_left_clean(tiny: Repository) -> None:
    assert tiny.run("git", "status", "--porcelain").stdout == ""


def test_one_runs_section_touches_that_run_alone(tiny: Repository, params: Path) -> None:
    values = yaml.safe_load(params.read_text())
    values["runs"]["ds_uniform"]["config"]["lr"] = 0.123
    params.write_text(yaml.safe_dump(values, sort_keys=False))
    changed = {name for name in _changed(tiny) if name.startswith("train@")}
    assert changed == {"train@ds_uniform-0"}


def test_a_methods_code_touches_its_runs_alone(tiny: Repository) -> None:
    path = tiny.root / "src/chestflow/methods/covidnet.py"
    before = path.read_text()
    try:
        path.write_text(before + "\n# a remark\n")
        assert _changed(tiny) == {"fingerprint"}
        tiny.run("dvc", "repro", "fingerprint")
        changed = _changed(tiny)
    finally:
        path.write_text(before)
        tiny.run("dvc", "repro", "fingerprint")
    assert changed == {"train@covidnet_r18_d-0", "report"}


def test_tuning_ranges_do_not_retrain(tiny: Repository, params: Path) -> None:
    values = yaml.safe_load(params.read_text())
    values["tune"]["trials"] += 1
    params.write_text(yaml.safe_dump(values, sort_keys=False))
    changed = _changed(tiny)
    assert any(name.startswith("tune@") for name in changed)
    assert not any(name.startswith("train@") for name in changed)


def test_unknown_key_stops_with_one_line_and_earlier_results_stay(tiny: Repository, params: Path) -> None:
    lock = (tiny.root / "dvc.lock").read_bytes()
    params.write_text(params.read_text().replace("tune_share:", "tune_shore:"))
    done = tiny.run("chestflow", "config", check=False)
    assert done.returncode == 2
    assert "tune_shore is unknown" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tiny.root / "dvc.lock").read_bytes() == lock


def test_missing_data_folder_is_one_line(tiny: Repository) -> None:
    folder, aside = tiny.root / "data/phantom", tiny.root / "data/aside"
    folder.rename(aside)
    try:
        done = tiny.run("python", "stages/ingest.py", "phantom", check=False)
    finally:
        aside.rename(folder)
    assert done.returncode == 2
    assert re.search(r"^error: .*data/phantom", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


def test_outs_hold_no_dates_or_machine_paths(tiny: Repository) -> None:
    for path in (tiny.root / "out").rglob("*"):
        if path.suffix in {".json", ".csv", ".html", ".md"} and path.name != "run.json":
            text = path.read_text()
            assert str(tiny.root) not in text, path
            assert not re.search(r"\b20\d\d-\d\d-\d\dT\d\d:", text), path
