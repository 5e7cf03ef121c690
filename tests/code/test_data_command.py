"""`chestflow data`: adding a set, listing, locating, withdrawing a patient."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from typer.testing import CliRunner

from chestflow.cli.data import data as app
from chestflow.config import Params
from chestflow.data import exposure, placing
from chestflow.data.identity import keyed_id
from chestflow.data.ingest import ingest
from chestflow.data.sources.base import names
from chestflow.data.sources.unsupported import SETS
from chestflow.errors import DataError, TrackingError, one_line_errors
from tests.code.image_files import chest, cohen_metadata, darkcovid, write_series


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty project with git and DVC, made once."""
    root = tmp_path_factory.mktemp("template")
    subprocess.run(["git", "init", "--quiet"], check=True, cwd=root)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True, capture_output=True, cwd=root)
    (root / ".dvc" / "config").write_text("[core]\nanalytics = false\nautostage = true\n")
    (root / ".gitignore").write_text("/data/?*\n!/data/*.dvc\n/out/\n")
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of the test's own, and the current folder."""
    root = Path(shutil.copytree(template, tmp_path / "project"))
    monkeypatch.chdir(root)
    return root


def call(*arguments: str) -> str:
    """Run a sub-command in this process; its error is raised."""
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    if done.exception is not None:
        raise done.exception
    return done.output


def md5_of(tracked: Path) -> str:
    return next(line.split()[-1] for line in tracked.read_text().splitlines() if "md5:" in line)


def test_add_copies_counts_and_tracks(project: Path, tmp_path: Path) -> None:
    download = darkcovid(tmp_path / "download")
    (download / ".git").mkdir()
    (download / ".git" / "config").write_text("x")
    said = call("add", "darkcovid", str(download))
    table = {
        line.split()[0]: line.split()[1:] for line in said.splitlines() if line.split()[0] in ("normal", "covid19")
    }
    assert table == {"normal": ["4", "500"], "covid19": ["4", "125"]}
    assert not (project / "data" / "darkcovid" / ".git").exists()
    assert len(list((project / "data" / "darkcovid").rglob("*.png"))) == 12
    assert (project / "data" / "darkcovid.dvc").is_file()
    staged = subprocess.run(["git", "diff", "--cached", "--name-only"], capture_output=True, text=True, check=True)
    assert "darkcovid" not in staged.stdout  # committing it is the user's choice
    with pytest.raises(DataError, match="is there already: use --replace"):
        call("add", "darkcovid", str(download))


def test_add_links(project: Path, tmp_path: Path) -> None:
    download = darkcovid(tmp_path / "download")
    call("add", "darkcovid", str(download), "--link")
    one = next((project / "data" / "darkcovid").rglob("*.png"))
    assert os.path.samefile(one, download / one.relative_to(project / "data" / "darkcovid"))


def test_add_refuses_with_one_line_and_leaves_nothing(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for arguments, message in {
        ("add", "nonsense", str(other)): "no adapter reads the set 'nonsense'",
        ("add", "darkcovid", str(tmp_path / "nowhere")): "is not a folder",
        ("add", "darkcovid", str(other)): "is not laid out like",
        ("add", "phantom", str(other)): "run `chestflow data phantom`",
        ("withdraw", "nih-0", "--yes"): "no set under data/ holds the patient",
        ("locate", "darkcovid-0"): "holds the image darkcovid-0",
    }.items():
        with pytest.raises(DataError, match=message):
            call(*arguments)
    assert not (project / "data").exists()


def test_a_full_disk_leaves_nothing_half_copied(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    download = darkcovid(tmp_path / "download")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(placing.shutil, "copyfile", full)
        with pytest.raises(SystemExit) as ended, one_line_errors():
            call("add", "darkcovid", str(download))
    assert ended.value.code == 2
    assert "the disk is full" in capsys.readouterr().err
    assert list((project / "data").iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(placing.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
        with pytest.raises(DataError, match="make room, or use --link"):
            call("add", "darkcovid", str(download))


def test_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no DVC repository"):
        call("add", "darkcovid", str(darkcovid(tmp_path / "download")))
    assert not (tmp_path / "data").exists()


def test_an_ignored_dvc_file_is_explained(project: Path, tmp_path: Path) -> None:
    (project / ".gitignore").write_text("/data/*\n")
    with pytest.raises(DataError, match=r"\.gitignore should say .* !/data/\*\.dvc"):
        call("add", "darkcovid", str(darkcovid(tmp_path / "download")))


def test_dvc_sees_a_set_under_the_projects_own_gitignore(project: Path, repository: Path, tmp_path: Path) -> None:
    (project / ".gitignore").write_text((repository / ".gitignore").read_text())
    call("add", "darkcovid", str(darkcovid(tmp_path / "download")))
    said = subprocess.run([sys.executable, "-m", "dvc", "status"], capture_output=True, text=True, check=True).stdout
    assert "up to date" in said  # and not that nothing is tracked
    known = subprocess.run(["git", "status", "--short", "-uall"], capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in known.splitlines() if "data/" in line] == ["data/darkcovid.dvc"]


def test_list_and_locate(project: Path) -> None:
    darkcovid(project / "data" / "darkcovid")
    said = call("list")
    lines = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert lines["darkcovid"].split()[1] == "yes"
    assert lines["covid_ct_md"].split()[1] == "no"
    assert "305" in lines["covid_ct_md"]
    assert "covid19 169" in lines["covid_ct_md"]
    readable, wanted = said.split("Not supported yet:")
    assert set(names()) <= set(readable.split())
    assert {item.name for item in SETS} <= set(wanted.split()) - set(names())
    assert all(item.reason in wanted for item in SETS)
    key = "X-Ray Image DataSet/Covid-19/case-1.png"
    assert call("locate", keyed_id("darkcovid", "image", key, "chestflow")).strip() == f"data/darkcovid/{key}"


def test_ensure_names_a_missing_set(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import chestflow.config

    class Stub:
        class data:
            sets = ("darkcovid",)

    monkeypatch.setattr(chestflow.config, "load", lambda: Stub)
    with pytest.raises(DataError, match=r"data/darkcovid is missing: .*chestflow data add darkcovid PATH"):
        call("ensure")
    darkcovid(project / "data" / "darkcovid")
    assert call("ensure") == ""


def trained(project: Path, image_ids: list[str]) -> None:
    """Splits and training outs as the stages write them."""
    roles = ["train", "test", "excluded"]
    pd.DataFrame(
        {
            "cohort": "all",
            "fold": [0, 1, 0],
            "image_id": [image_ids[0], image_ids[0], image_ids[1]],
            "group_id": "g",
            "role": roles,
        }
    ).to_parquet(project / "out" / "splits.parquet")
    for fold in (0, 1):
        folder = project / "out" / "train" / "net" / str(fold)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"mlflow_run_id": f"id{fold}"}))


def minimal_params() -> Params:
    return Params.model_validate(
        {
            "profile": "p",
            "data": {"sets": ["darkcovid"]},
            "cohorts": {"all": {"sets": ["darkcovid"], "modality": "cxr"}},
            "recipes": {"small": {"modality": "cxr", "size": [32, 32]}},
            "tasks": {"t": {"cohort": "all", "classes": {"rest": ["normal"], "covid19": ["covid19"]}}},
            "runs": {"net": {"method": "covidnet", "task": "t", "recipe": "small"}},
        }
    )


def test_withdraw_removes_every_trace_and_lists_runs(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("add", "darkcovid", str(darkcovid(tmp_path / "download")))
    before = md5_of(project / "data" / "darkcovid.dvc")
    ingest("darkcovid", Path("data/darkcovid"), Path("out/ingest/darkcovid"), id_key="chestflow", workers=1)
    manifest = pd.read_parquet("out/ingest/darkcovid/manifest.parquet")
    patient = keyed_id("nih", "patient", "00000000", "chestflow")
    mine = manifest[manifest["patient_id"] == patient]
    assert len(mine) == 2
    trained(project, list(mine["image_id"]))
    masks = project / "out" / "segment" / "cxr" / "masks"
    masks.mkdir(parents=True)
    (masks / f"{mine['image_id'].iloc[0]}.png").write_bytes(b"x")
    (masks / "another.png").write_bytes(b"x")
    (project / "params.yaml").write_text("present")
    monkeypatch.setattr("chestflow.config.load", minimal_params)
    saw = SimpleNamespace(
        uri=lambda: "http://nowhere",
        database=lambda uri: None,
        runs_that_saw=lambda patient_id: [
            SimpleNamespace(run_id="id0", name="net-0", roles=("train",)),  # known from out/train
            SimpleNamespace(run_id="old", name="net-0", roles=("tune",)),
        ],
    )
    monkeypatch.setattr(exposure, "import_module", lambda name: saw)
    monkeypatch.setattr(exposure, "model_versions", lambda seen: {"id0": ["net v3"]})

    said = call("withdraw", patient, "--yes")
    assert not any(Path(path).exists() for path in mine["path"])
    assert len(list((project / "data" / "darkcovid").rglob("*.png"))) == 10
    assert [path.name for path in masks.iterdir()] == ["another.png"]
    assert md5_of(project / "data" / "darkcovid.dvc") != before
    assert "run net fold 0: train; MLflow run id0; model versions: net v3" in said
    assert "run net fold 1: test; MLflow run id1; model versions: none" in said
    assert "run net-0: tune; MLflow run old; model versions: none" in said
    assert said.count("MLflow run id0") == 1
    assert "have seen the patient: retrain" in said
    assert "dvc repro" in said
    assert "00000000" not in said
    # A set added anew leaves the patient out.
    call("add", "darkcovid", str(tmp_path / "download"), "--replace")
    assert len(list((project / "data" / "darkcovid").rglob("*.png"))) == 10


def test_withdraw_asks_first(project: Path) -> None:
    root = darkcovid(project / "data" / "darkcovid")
    patient = keyed_id("nih", "patient", "00000000", "chestflow")
    assert CliRunner().invoke(app, ["withdraw", patient], input="n\n").exit_code == 1
    assert len(list(root.rglob("*.png"))) == 12


def test_withdraw_reaches_tables_and_other_sets(project: Path) -> None:
    root = darkcovid(project / "data" / "darkcovid")
    lines = [f'{i},F,50,COVID-19,PA,X-ray,case-{i}.jpg,,"told, quoted"' for i in range(4)]
    cohen_metadata(root / "metadata.csv", [*lines, "2,F,50,COVID-19,L,X-ray,not-here.jpg,,more of the same patient"])
    patient = keyed_id("cohen", "patient", "2", "chestflow")
    said = call("withdraw", patient, "--yes")
    assert "no trained run here has seen the patient" in said
    assert not (project / "mlflow.db").exists()  # asking a store makes none
    text = (root / "metadata.csv").read_text()
    assert "same patient" not in text
    assert [line.split(",")[0] for line in text.splitlines()] == ["patientid", "0", "1", "3"]
    assert text.count('"told, quoted"') == 3
    assert not (root / "X-Ray Image DataSet" / "Covid-19" / "case-2.png").exists()


def test_withdraw_never_follows_a_link_to_originals(project: Path, tmp_path: Path) -> None:
    original = darkcovid(tmp_path / "original")
    (project / "data").mkdir()
    (project / "data" / "darkcovid").symlink_to(original)
    with pytest.raises(DataError, match="is a link: the originals would be deleted"):
        call("withdraw", keyed_id("nih", "patient", "00000000", "chestflow"), "--yes")
    assert len(list(original.rglob("*.png"))) == 12


def test_withdraw_of_a_series_leaves_the_layout(project: Path) -> None:
    root = project / "data" / "covid_ct_md"
    for name in ("first", "second"):
        write_series(root / "Cap subjects" / "cap001" / name, chest(), SeriesInstanceUID=f"1.2.{len(name)}")
    write_series(root / "COVID-19 subjects" / "P001", chest())
    (root / "Normal subjects").mkdir()
    said = call("withdraw", keyed_id("covid_ct_md", "patient", "cap001", "chestflow"), "--yes")
    assert "deleted 10 files" in said
    assert list((root / "Cap subjects").iterdir()) == []
    call("withdraw", keyed_id("covid_ct_md", "patient", "P001", "chestflow"), "--yes")
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == sorted(
        ["COVID-19 subjects", "Cap subjects", "Normal subjects"]
    )


def test_an_unreachable_store_does_not_stop_a_withdrawal(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(patient: str) -> list:
        raise TrackingError("the tracking server does not answer")

    stub = SimpleNamespace(uri=lambda: "http://nowhere", database=lambda uri: None, runs_that_saw=unreachable)
    monkeypatch.setattr(exposure, "import_module", lambda name: stub)
    root = darkcovid(project / "data" / "darkcovid")
    said = call("withdraw", keyed_id("nih", "patient", "00000000", "chestflow"), "--yes")
    assert "MLflow could not be asked" in said
    assert len(list(root.rglob("*.png"))) == 10
