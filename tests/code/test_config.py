"""params.yaml: unknown keys and impossible values get one clear line."""

import copy
from pathlib import Path

import pytest
import yaml

from chestflow import dag, profiles
from chestflow.config import Params, load, parse
from chestflow.errors import ConfigError


@pytest.fixture
def phantom(repository: Path) -> dict:
    return profiles.read("phantom", repository / "profiles")


def _with(values: dict, path: str, value: object) -> dict:
    changed = copy.deepcopy(values)
    *parents, last = path.split(".")
    place = changed
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("sed", 1, "sed is unknown"),
        ("split.k", 1, "split.k"),
        ("split.tune_share", 1.5, "split.tune_share"),
        ("data.sets", [], "data.sets"),
        ("folds", [7], "folds asks for fold 7"),
        ("folds", [-1], "folds"),
        ("tune.threshold", [0.9, 0.1], "first must be below the second"),
        ("tune.cut_low", [0.001, 0.05], "cut_low's range must end"),
        ("evaluate.prevalences", [0], "evaluate.prevalences"),
        ("engine.device", "tpu", "engine.device"),
        ("recipes.cxr_96_clahe.size", [96], "recipes.cxr_96_clahe"),
        ("recipes.ct_volume_48.spacing_mm", None, "spacing_mm"),
        ("tasks.covid_vs_rest.cohort", "nowhere", "tasks.covid_vs_rest.cohort names 'nowhere'"),
        ("tasks.covid_vs_rest.classes", {"covid19": ["covid19"]}, "at least two classes"),
        ("tasks.covid_vs_rest.classes", {"covid19": ["covid19"], "rest": ["normal"]}, "last class must be covid19"),
        ("tasks.covid_vs_rest.classes", {"rest": ["covid19"], "covid19": ["covid19"]}, "stands in two classes"),
        ("tasks.covid_vs_rest.classes", {"rest": ["healthy"], "covid19": ["covid19"]}, "covid_vs_rest.classes.rest"),
        ("runs.covidnet_r18_d.recipe", "ct_volume_48", "is not for cxr"),
        ("ensembles.dual_sampling.uniform", "nobody", "ensembles.dual_sampling.uniform"),
        ("ensembles.dual_sampling.uniform", "covidnet_r18_d", "joins runs of different tasks"),
        ("segment.cxr_lungs.sets", ["elsewhere"], "segment.cxr_lungs.sets names 'elsewhere'"),
        ("cohorts.phantom_cxr.external", ["phantom"], "both trained on and external"),
        ("promote.staging.auroc_lo", 1.2, "promote.staging.auroc_lo"),
    ],
)
def test_impossible_values_are_refused_in_one_line(phantom: dict, path: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(_with(phantom, path, value))
    message = str(caught.value)
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("runs.covidnet_r18_d.method", "resnet_magic", "method 'resnet_magic' is unknown; known are"),
        ("runs.covidnet_r18_d.config.clusterz", 4, "clusterz is unknown to method covidnet"),
        ("runs.covidnet_r18_d.config.setting", "E", "setting is 'E'"),
        ("runs.covidnet_r18_d.config.epochs", "many", "epochs is 'many'"),
        ("runs.covidnet_r18_d.method", "dual_sampling", "dual_sampling"),
    ],
)
def test_method_settings_are_checked(phantom: dict, path: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        profiles.complete(_with(phantom, path, value))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_params(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chestflow config phantom"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("runs: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("just text")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        load(tmp_path / "params.yaml")


def test_committed_params_are_the_completed_phantom_profile(repository: Path) -> None:
    completed = profiles.complete(profiles.read("phantom", repository / "profiles"))
    assert (repository / "params.yaml").read_text() == profiles.text("phantom", completed)
    assert not profiles.edited(repository / "params.yaml")


@pytest.mark.parametrize("name", profiles.names(Path(__file__).parents[2] / "profiles"))
def test_every_profile_is_complete_and_builds(repository: Path, name: str) -> None:
    values = profiles.complete(profiles.read(name, repository / "profiles"))
    params = parse(values)
    assert set(dag.tables(params)["evaluate"]) == {*params.runs, *params.ensembles}
    profiles.check(params)


def test_bfloat16_for_volumes_on_a_cpu_is_refused_before_anything_runs(phantom: dict) -> None:
    def check(device: str, amp: str) -> None:
        profiles.check(parse({**phantom, "engine": {"device": device, "amp": amp}}))

    with pytest.raises(ConfigError, match=r"engine\.amp is bf16 on the CPU.* set engine\.amp to off or auto"):
        check("cpu", "bf16")
    check("cpu", "auto")
    check("auto", "bf16")  # another machine may train; the engine asks again there


def test_own_edits_are_seen_and_kept(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    completed = profiles.complete(profiles.read("phantom", repository / "profiles"))
    path.write_text(profiles.text("phantom", completed))
    assert not profiles.edited(path)
    path.write_text(path.read_text().replace("seed: 1\n", "seed: 2\n", 1))
    assert profiles.edited(path)
    with pytest.raises(ConfigError, match="edits of your own"):
        profiles.write("tiny", path)
    profiles.sync(path)
    dag.require_current(load(path), tmp_path / dag.FILE)
    assert yaml.safe_load(path.read_text())["seed"] == 2
    assert profiles.edited(path)


def test_stale_tables_are_refused(phantom: dict, tmp_path: Path) -> None:
    params, path = parse(profiles.complete(phantom)), tmp_path / dag.FILE

    def refused(params: Params) -> None:
        with pytest.raises(ConfigError, match="chestflow config --sync"):
            dag.require_current(params, path)

    refused(params)
    assert dag.write(params, path)
    assert not dag.write(params, path)
    dag.require_current(params, path)
    refused(params.model_copy(update={"folds": [0, 1]}))
    path.write_text(path.read_text()[:-9])
    refused(params)


def test_a_profile_brings_its_tables_back(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    path = tmp_path / "params.yaml"
    assert profiles.write("tiny", path)
    assert not profiles.write("tiny", path)
    (tmp_path / dag.FILE).unlink()
    assert profiles.write("tiny", path)
    dag.require_current(load(path), tmp_path / dag.FILE)


def test_off_without_quotes_is_off(phantom: dict) -> None:
    """As `dvc exp run -S` leaves it in params.yaml."""
    written = yaml.safe_load("amp: off")
    assert written == {"amp": False}
    params = parse({**phantom, "engine": written, "infection": {"ct_slice": written}})
    assert params.engine.amp == params.infection.ct_slice.amp == "off"


def test_unknown_profile_names_the_known(repository: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown; known are .*phantom"):
        profiles.read("phantm", repository / "profiles")


def test_null_removes_an_entry_of_the_extended_profile(repository: Path) -> None:
    assert "covidnet_r18_a" in profiles.read("phantom", repository / "profiles")["runs"]
    assert "covidnet_r18_a" not in profiles.read("tiny", repository / "profiles")["runs"]
