"""Tables II and III on phantoms: a run for every row, alike but for what the rows differ in, on its own cohort."""

from pathlib import Path

import pandas as pd
import pytest

from chestflow import dag, profiles
from chestflow.cli.phantom import phantom
from chestflow.config import Params, parse
from chestflow.data.phantom import cohort, generate
from chestflow.data.phantom.layout import SETS
from chestflow.data.placing import place
from chestflow.data.sources.base import read_rows
from chestflow.errors import DataError
from chestflow.evaluation.reproduction import matches, paper_figures

ROWS = {
    "narrow_rn_us": ("uniform", False),
    "narrow_att_us": ("uniform", True),
    "narrow_att_ss": ("size_balanced", True),
    "narrow_rn_ss": ("size_balanced", False),
}


@pytest.fixture(scope="module")
def params(repository: Path) -> Params:
    read = profiles.read("phantom_large", repository / "profiles")
    return parse(profiles.complete(read, "profiles/phantom_large.yaml"))


def test_every_network_fits_its_input_and_every_fold_is_trained(params: Params) -> None:
    profiles.check(params)
    assert params.folds == [0, 1, 2, 3, 4]
    assert set(params.runs) == {*ROWS, "ratio"}
    tables = dag.tables(params)
    assert len(tables["train"]) == 5 * 5
    assert tables["ensemble"].keys() >= {"narrow_ds-0", "narrow_ds_swapped-4"}


def test_networks_differ_in_sampling_and_attention_alone(params: Params) -> None:
    varied = {"sampling", "attention", "covid_cut", "cap_cut"}
    configs = {name: params.runs[name].config for name in ROWS}
    assert {name: (c["sampling"], c["attention"]) for name, c in configs.items()} == ROWS
    rest = [{k: v for k, v in c.items() if k not in varied} for c in configs.values()]
    assert all(one == rest[0] for one in rest)
    assert (rest[0]["depth"], rest[0]["width"]) != (34, 64)
    assert all(name.startswith("narrow_") for name in ROWS)


def test_each_printed_row_has_one_entry(params: Params) -> None:
    rows = paper_figures()["dual_sampling"]["rows"]
    names = [*params.runs, *params.ensembles]
    stands = {
        label: [n for n in names if matches(row.get("match"), "dual_sampling", n, params)]
        for label, row in rows.items()
    }
    assert stands == {
        "RN34+US": ["narrow_rn_us"],
        "Attention RN34+US": ["narrow_att_us"],
        "Attention RN34+SS": ["narrow_att_ss"],
        "Attention RN34+DS": ["narrow_ds"],  # and not the swapped one, which no paper trained
        "COVID-19 if the ratio is 0.005 or more": ["ratio"],
    }


def test_the_two_ensembles_are_each_others_swap(params: Params) -> None:
    printed, swapped = params.ensembles["narrow_ds"], params.ensembles["narrow_ds_swapped"]
    assert (printed.w_extreme, printed.w_middle) == (0.35, 0.96)
    assert (swapped.w_extreme, swapped.w_middle) == (printed.w_middle, printed.w_extreme)
    assert printed.parts == swapped.parts
    assert (swapped.cut_low, swapped.cut_high) == (0.001, 0.030)


def test_the_cohort_is_large_and_holds_none_of_the_embedded_patients(params: Params) -> None:
    people = cohort.draw(generate.LARGE_PATIENTS, generate.LARGE_SEED)
    labels = set(params.cohorts["phantom_ct"].labels or [])
    volumes = [study for person in people if person.label in labels for study in person.studies]
    assert len(volumes) == 345
    assert len({person.index for person in people if person.label in labels}) == 256
    embedded = cohort.draw(generate.PATIENTS, generate.SEED)
    taken = {study.lung_shift_hu for person in embedded for study in person.studies}
    assert taken.isdisjoint(study.lung_shift_hu for study in volumes)


def test_the_option_writes_its_own_folder_and_leaves_the_embedded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def write(out: Path, patients: int, seed: int, shape: tuple[int, int, int], shortcut: float) -> pd.DataFrame:
        asked.append((out.as_posix(), patients, seed, shape, shortcut))
        return pd.DataFrame({"modality": ["ct_volume"], "patient": ["PH0001"]})

    monkeypatch.setattr(generate, "write_cohort", write)
    phantom(large=True)
    phantom()
    phantom(large=True, patients=40, out=Path("elsewhere"))
    assert asked == [
        ("data/phantom_large", 320, 21, (48, 96, 96), 0.0),
        ("data/phantom", 200, 20, (48, 96, 96), 0.0),
        ("elsewhere", 40, 21, (48, 96, 96), 0.0),
    ]


def test_the_missing_folder_names_the_command_and_the_set_is_synthetic(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `chestflow data phantom --large`"):
        next(iter(read_rows("phantom_large", tmp_path / "phantom_large")))
    with pytest.raises(DataError, match="is made, not added: run `chestflow data phantom --large`"):
        place("phantom_large", tmp_path, tmp_path / "data")
    assert "phantom_large" in SETS
