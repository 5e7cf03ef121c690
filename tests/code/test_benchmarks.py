"""Every benchmark imports, finds what it names in the package, tells its options and stands in the README's table."""

from __future__ import annotations

import ast
import importlib
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
FILES = sorted(FOLDER.glob("*.py"))
SCRIPTS = [path for path in FILES if "__main__" in path.read_text()]
SOURCE = Path(__file__).parents[2] / "src"
MODULES = {".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in SOURCE.rglob("*.py")}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a file of the folder as its script would see it."""
    monkeypatch.syspath_prepend(FOLDER)

    def imported(path: Path) -> ModuleType:
        return importlib.import_module(path.stem)

    before = set(sys.modules)
    yield imported
    for name in {path.stem for path in FILES} & (set(sys.modules) - before):
        del sys.modules[name]


def missing(path: Path) -> list[str]:
    """What a file imports from the package, within functions too, and the package does not have."""
    lost = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "chestflow":
            continue
        module = importlib.import_module(str(node.module))
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            if not hasattr(module, alias.name) and whole not in MODULES:
                lost.append(whole)
    return lost


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_imports_what_there_is(path: Path, load) -> None:
    assert load(path).__doc__
    assert missing(path) == []


def test_a_lost_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    lines = ("def f():", "    from chestflow.files import read_json, gone", "    from chestflow.imaging import cam")
    file.write_text("\n".join(lines) + "\n")
    assert missing(file) == ["chestflow.files.gone"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_tells_its_options(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert "--help" in capsys.readouterr().out


def test_the_readme_lists_each_script() -> None:
    listed = {line.split("`")[1] for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| `")}
    assert listed == {path.name for path in SCRIPTS}


def test_full_size_series_is_a_thorax_that_the_reader_takes(tmp_path: Path, load) -> None:
    from chestflow.imaging.read import read_volume
    from chestflow.segmentation.lungs import segment_ct

    load(FOLDER / "full_size_inputs.py").write_series(tmp_path, slices=48, plane=96)
    volume = read_volume(tmp_path)
    assert volume.hu.shape == (48, 96, 96)
    assert volume.spacing_mm[1] == volume.spacing_mm[2]
    lungs = segment_ct(volume.hu, volume.spacing_mm)
    litres = lungs.sum() * np.prod(volume.spacing_mm) / 1e6
    assert 2 < litres < 9
    assert volume.hu[lungs].mean() < -500


def test_full_size_batches_hold_both_classes_and_the_masks_that_the_loss_needs(load) -> None:
    import torch

    from chestflow.training.loader import Reader

    pack = load(FOLDER / "full_size_inputs.py").Mixed((4, 8, 8), 4)
    reader = Reader(pack, pack.table, torch.device("cpu"))
    batch = reader.finish(reader.read([0, 1, 3]))
    assert batch.target.tolist() == [0, 1, 1]
    assert batch.image.shape == (3, 1, 4, 8, 8)
    assert batch.has_infection.all()
    assert (batch.lung == 1).all()
    assert 0 < batch.infection[1].mean() < 0.2


@pytest.mark.slow
def test_full_size_measures_every_part_at_a_small_size(tmp_path: Path) -> None:
    import json
    import subprocess

    small = "--slices 12 --plane 64 --size 16 32 32 --width 4 --depth 10 --batch 2 --repeats 1 --threads 1 --device cpu"
    network = "--inf-net resnet18 --inf-side 64 --inf-channel 4"
    out = tmp_path / "full.json"
    command = [sys.executable, str(FOLDER / "full_size_ct.py"), *small.split(), *network.split(), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert [row["step"] for row in found["preprocess"]] == ["read", "find lungs", "resample", "preprocessing"]
    assert [row["bf16"] for row in found["network"]] == [False, True]
    assert [row["checkpointing"] for row in found["step"]] == [False, True]
    assert found["step"][1]["kept_gib"] < found["step"][0]["kept_gib"]
    answered = [row for row in found["answer"] if row["step"] == "file to answer"]
    assert [row["answer"] for row in answered] == ["first", "again"]
    assert answered[-1]["peak_gib"] > 0


@pytest.mark.slow
def test_folds_of_covid_semiseg_at_the_smallest_size(
    tmp_path: Path, load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from tests.data.test_sources_ct import semiseg

    root = semiseg(tmp_path / "covid_semiseg")
    asked = "--backbone resnet18 --channel 4 --size 64 --scales 1.0 --epochs 1 --batch 3 --folds 2 --threads 1 --pseudo"
    rounds = "--chunk 8 --round-epochs 1 --unlabelled 8"
    monkeypatch.setattr(sys, "argv", ["folds", str(root), *asked.split(), *rounds.split()])
    load(FOLDER / "covid_semiseg_folds.py").main()
    found = json.loads(capsys.readouterr().out)
    assert found["slices"] == 6
    assert set(found["folds"]) == {"0", "1"}
    assert 0 <= found["all"]["dice"][0] <= 1
