"""Which slices get pseudo labels: none that any fold judges a classifier on, and what happens where none is left."""

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from chestflow.config import Infection, Segment
from chestflow.config_segmentation import InfectionSlices, InfectionVolumes
from chestflow.files import read_json
from chestflow.segmentation import infection, infection_fitting, places
from tests.code.infection_cases import fit_slices, fit_tables, slice_rows, small_slices, stand_in, tables


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


def settings(**pseudo: object) -> InfectionSlices:
    return small_slices(pseudo={"sets": ["a"], "chunk": 4, "epochs": 1, "batch_size": 4, **pseudo})


def record(out: Path) -> dict:
    return read_json(places.infection(out, "ct_slice") / "pseudo.json")["final"]


def test_a_slice_that_an_untrained_fold_tests_gets_no_pseudo_label(tmp_path: Path) -> None:
    rows = slice_rows(tmp_path, 12, unlabelled=6)
    manifest, first, groups = tables(rows, {"a-001": "test", "a-013": "test"})
    _, second, _ = tables(rows, {"a-000": "test", "a-012": "test", "a-014": "tune"})
    splits = pd.concat([first, second.assign(fold=1)], ignore_index=True)
    one = fit_tables(manifest, splits, groups, settings(), tmp_path / "one", folds=[0])
    assert sorted(record(tmp_path / "one")["masks"]) == ["a-015", "a-016", "a-017"]
    assert (one["trained_on"]["images"], one["images"]) == (11, 1), "source masks go by the trained fold alone"
    both = fit_tables(manifest, splits, groups, settings(), tmp_path / "both", folds=[0, 1])
    assert sorted(record(tmp_path / "both")["masks"]) == ["a-015", "a-016", "a-017"]
    assert (both["trained_on"]["images"], both["images"]) == (10, 2)
    asked = settings(include_test_in_pseudo=True)
    fit_tables(manifest, splits, groups, asked, tmp_path / "all", folds=[0])
    assert sorted(record(tmp_path / "all")["masks"]) == [f"a-{number:03d}" for number in range(12, 18)]


def test_a_slice_is_barred_with_its_group(tmp_path: Path) -> None:
    rows = slice_rows(tmp_path, 12, unlabelled=3)
    manifest, first, groups = tables(rows, {"a-001": "test"})
    _, second, _ = tables(rows, {"a-012": "test"})
    groups.loc[groups["image_id"] == "a-013", "group_id"] = "g-a-012"
    splits = pd.concat([first, second.assign(fold=1)], ignore_index=True)
    fit_tables(manifest, splits, groups, settings(), tmp_path, folds=[0])
    assert sorted(record(tmp_path)["masks"]) == ["a-014"]


def with_scans(rows: list[dict], roles: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Tables of slices and of as many volumes without files: ``v-003`` is of the patient of ``a-003``."""
    scans = [
        {**row, "image_id": row["image_id"].replace("a-", "v-"), "modality": "ct_volume", "path": "no.nii"}
        for row in rows
    ]
    manifest, splits, groups = tables([*rows, *scans], roles)
    groups["group_id"] = groups["group_id"].str.replace("g-v-", "g-a-")
    return manifest, splits, groups


def test_a_role_of_a_patients_volume_bars_no_slice(tmp_path: Path) -> None:
    """A classifier of volumes never meets the masks of slices."""
    roles = {"a-001": "test", "a-013": "test", "v-000": "test", "v-002": "external", "v-012": "tune", "v-014": "test"}
    tables_of_both = with_scans(slice_rows(tmp_path, 12, unlabelled=6), roles)
    said = fit_tables(*tables_of_both, settings(), tmp_path)
    assert (said["trained_on"]["images"], said["images"]) == (11, 1)
    assert sorted(record(tmp_path)["masks"]) == ["a-012", "a-014", "a-015", "a-016", "a-017"]


def test_a_role_of_a_patients_slice_bars_no_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, splits, groups = with_scans(slice_rows(tmp_path, 12), {"a-001": "test", "v-000": "test", "v-002": "tune"})
    given: list[set[str]] = []

    def stop(table: pd.DataFrame, judged: set[str], *_: object, **__: object) -> None:
        given.append(judged)
        raise InterruptedError

    monkeypatch.setattr(infection_fitting, "divide", stop)
    own = Infection(ct_volume=InfectionVolumes(sets=["a"]))
    with pytest.raises(InterruptedError):  # before a volume is read
        infection_fitting.fit_infection("ct_volume", manifest, splits, groups, own, Segment(), tmp_path, seed=1)
    assert given == [{"g-a-000", "g-a-002"}]


def test_where_cross_validation_tests_every_slice_there_are_no_rounds(tmp_path: Path) -> None:
    rows = slice_rows(tmp_path, 12, unlabelled=4)
    manifest, first, groups = tables(rows, {row["image_id"]: "test" for row in rows[0::2]})
    _, second, _ = tables(rows, {row["image_id"]: "test" for row in rows[1::2]})
    splits = pd.concat([first, second.assign(fold=1)], ignore_index=True)
    fit_tables(manifest, splits, groups, settings(), tmp_path, folds=[0])
    assert record(tmp_path) == {"rounds": [], "masks": {}}


def test_without_unlabelled_slices_the_stage_trains_on_source_masks_alone(tmp_path: Path) -> None:
    rows = slice_rows(tmp_path, 12)
    said = fit_slices(rows, {"a-000": "test"}, settings(), tmp_path)
    assert said["trained_on"] == {"images": 11, "patients": 11}
    folder = places.infection(tmp_path, "ct_slice")
    assert record(tmp_path) == {"rounds": [], "masks": {}}
    assert not (folder / "pseudo").exists()
    assert infection.load(folder).modalities == ("ct_slice",)
    fit_slices(rows, {"a-000": "test"}, small_slices(), tmp_path / "plain")
    same = places.infection(tmp_path / "plain", "ct_slice") / "ct_slice.safetensors"
    assert (folder / "ct_slice.safetensors").read_bytes() == same.read_bytes()


def test_the_stage_hands_over_all_folds_and_names_the_trained_ones(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("stage_infection", repository / "stages" / "infection.py")
    assert spec is not None
    assert spec.loader is not None
    stage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stage)
    params = SimpleNamespace(folds=[0], infection=None, segment=None, seed=1, engine=SimpleNamespace(threads=1))
    table = pd.DataFrame({"fold": [0, 1, 2]})
    given: dict = {}
    monkeypatch.setattr(stage, "load", lambda: params)
    monkeypatch.setattr(stage, "read_parquet", lambda path: table)
    monkeypatch.setattr(stage, "infection_run", lambda *_, **__: nullcontext())
    monkeypatch.setattr(stage, "fit_infection", lambda *some, **more: given.update(more, splits=some[2]))
    stage.main("ct_slice")
    assert list(given["splits"]["fold"]) == [0, 1, 2]
    assert given["folds"] == [0]
