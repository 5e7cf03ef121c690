"""The fit loop: phases, freezing, best weights, early stopping, accumulation, clipping, failures, run's products."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from chestflow.errors import ChestflowError, ConfigError, DataError, TrainingError
from chestflow.files import read_json, write_parquet
from chestflow.methods import registry
from chestflow.methods.registry import InputSpec
from chestflow.training import engine, history
from chestflow.training.distributed import World
from chestflow.training.hardware import choose_device, mixed
from chestflow.training.phases import Phase
from chestflow.training.progress import Progress
from chestflow.training.run import train_run
from chestflow.training.steps import shares
from tests import toy


class Record:
    run_id = "abc"

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.seen.append((step, values))


def fit(
    tmp_path: Path,
    config: dict[str, Any] | None = None,
    change: Callable[[Phase], Phase] = lambda phase: phase,
    shape: tuple[int, ...] = (12, 12),
    network: nn.Module | None = None,
    seed: int = 1,
    log: Record | None = None,
    **settings: Any,
) -> engine.FitResult:
    made = toy.ToyConfig(**(config or {}))
    pack, target = toy.make_pack(36, shape)
    torch.manual_seed(0)
    network = network or toy.ToyNetwork(made, InputSpec("cxr", shape, ("rest", "covid19")))
    data = engine.Data(pack, toy.table(range(20), target), toy.table(range(20, 36), target))
    phases = [change(p) for p in toy.phases(made)]
    return engine.fit(network, phases, data, toy.settings(**settings), seed=seed, folder=tmp_path / "c", log=log)


def state(result: engine.FitResult) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in result.network.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("shape", [(12, 12), (6, 8, 8)])
def test_it_learns_a_bright_square(shape: tuple[int, ...], tmp_path: Path) -> None:
    config = {"epochs": 25, "phases": 1, "lr": 0.05, "dropout": 0.0}
    result = fit(tmp_path, config, lambda p: replace(p, schedule=None), shape=shape)
    assert result.epochs[-1]["train_loss"] < 0.5 * result.epochs[0]["train_loss"]
    assert result.best[0]["auroc"] > 0.95
    assert result.best[0]["phase"] == "whole"


def test_seeds_matter(tmp_path: Path) -> None:
    first, again, other = (state(fit(tmp_path / n, seed=s)) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    assert same(first, again)
    assert not same(first, other)


def test_a_frozen_body_keeps_its_weights_and_statistics(tmp_path: Path) -> None:
    first = state(fit(tmp_path / "a", {"phases": 1}))
    both = state(fit(tmp_path / "b", {"phases": 2}))
    body = [k for k in first if k.startswith("body")]
    assert any("running_mean" in k for k in body)
    assert all(torch.equal(first[k], both[k]) for k in body)
    assert not torch.equal(first["head.weight"], both["head.weight"])


def test_the_best_epoch_is_kept_and_stopping_is_early(tmp_path: Path) -> None:
    result = fit(tmp_path, {"epochs": 30, "phases": 1, "patience": 3})
    values = [row["tune_auroc"] for row in result.epochs]
    best = result.best[0]["epoch"]
    assert values[best - 1] == max(values)
    assert values.index(max(values)) == best - 1
    assert len(values) == best + 3 < 30
    # the kept weights are the best epoch's: the same training cut off there has them at its end
    cut = fit(tmp_path / "cut", {"epochs": best, "phases": 1})
    assert same(state(result), state(cut))


def test_a_falling_loss_is_better_than_a_rising_one(tmp_path: Path) -> None:
    result = fit(tmp_path, {"epochs": 8, "phases": 1}, lambda p: replace(p, monitor="loss"))
    losses = [row["tune_loss"] for row in result.epochs]
    assert result.best[0]["epoch"] == losses.index(min(losses)) + 1


def test_accumulation_gives_the_same_step(tmp_path: Path) -> None:
    """Without batch norm, dropout and augmentation a step over micro-batches is a step over the batch."""
    plain = {"norm": False, "dropout": 0.0, "augment": False, "phases": 1, "clip_norm": 0.05}
    # the preparation reads one micro-batch, so it is left out here
    first, second = (
        fit(tmp_path / str(a), {**plain, "accumulate": a}, lambda p: replace(p, prepare=None)) for a in (1, 3)
    )
    assert first.epochs[-1]["train_loss"] == pytest.approx(second.epochs[-1]["train_loss"], rel=1e-5)
    for k, v in state(first).items():
        torch.testing.assert_close(v, state(second)[k], rtol=1e-4, atol=1e-5)


def test_shares_cover_a_batch_once_and_weigh_one() -> None:
    for n in range(1, 23):
        for micro in (1, 2, 5, 30):
            for size in (1, 2, 3):
                dealt = [shares(list(range(n)), micro, World(rank, size)) for rank in range(size)]
                taken = [i for mine in dealt for chunk, weight in mine if weight for i in chunk]
                assert sorted(taken) == list(range(n))
                assert sum(weight for mine in dealt for _, weight in mine) == pytest.approx(1)
                assert all(mine for mine in dealt)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    def sgd(phase: Phase) -> Phase:
        return replace(phase, optimiser=lambda p: torch.optim.SGD(p, lr=1.0), schedule=None, prepare=None)

    config = {"norm": False, "epochs": 1, "batch_size": 20, "phases": 1, "clip_norm": 1e-3}
    torch.manual_seed(0)
    before = toy.ToyNetwork(toy.ToyConfig(**config), InputSpec("cxr", (12, 12), ("rest", "covid19"))).state_dict()
    after = state(fit(tmp_path, config, sgd))
    moved = sum(float((after[k] - before[k]).square().sum()) for k in before) ** 0.5
    assert moved == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(("poison", "says"), [("loss", "the loss is inf"), ("gradient", "a gradient is not finite")])
def test_what_is_not_finite_stops_with_its_place_and_advice(poison: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        fit(tmp_path, {"poison": poison})
    said = str(caught.value)
    assert says in said
    assert "phase whole, epoch 1, step 1" in said
    assert "lower lr" in said
    with pytest.raises(TrainingError, match=r"engine\.amp: off"):
        fit(tmp_path, {"poison": poison}, amp="bf16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is a GPU here")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_volumes_in_bfloat16_are_refused_on_a_cpu(device: str, tmp_path: Path) -> None:
    config = {"epochs": 1, "phases": 1}
    with pytest.raises(ConfigError, match=r"engine\.amp is bf16 on the CPU"):
        fit(tmp_path / "a", config, shape=(6, 8, 8), amp="bf16", device=device)
    assert not (tmp_path / "a").exists()
    for amp in ("auto", "off"):
        assert not fit(tmp_path / amp, config, shape=(6, 8, 8), amp=amp, device=device).amp
    assert fit(tmp_path / "flat", config, amp="bf16", device=device).amp


def test_bfloat16_is_for_gpus_unless_asked_for() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert [mixed(gpu, amp, volumes=True) for amp in ("auto", "bf16", "off")] == [True, True, False]
    assert [mixed(cpu, amp, volumes=False) for amp in ("auto", "bf16", "off")] == [False, True, False]


@pytest.mark.parametrize("units", [True, False])
def test_native_is_bfloat16_for_pictures_where_the_processor_has_units(
    monkeypatch: pytest.MonkeyPatch, units: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    cpu, gpu, other = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))
    assert mixed(cpu, "native", volumes=False) is units
    assert not mixed(cpu, "native", volumes=True)
    assert mixed(gpu, "native", volumes=True)
    assert not mixed(other, "native", volumes=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")  # a torch that does not tell
    assert not mixed(cpu, "native", volumes=False)


def test_mixed_precision_trains_where_it_is_asked_for(tmp_path: Path) -> None:
    result = fit(tmp_path, {"epochs": 3}, amp="bf16")
    assert result.amp
    assert all(v.dtype != torch.bfloat16 for v in state(result).values())
    assert not fit(tmp_path / "auto", {"epochs": 1}, amp="auto").amp


def test_metrics_go_to_the_log_once_an_epoch(tmp_path: Path) -> None:
    log = Record()
    result = fit(tmp_path, {"epochs": 3}, log=log)
    assert [step for step, _ in log.seen] == [1, 2, 3, 4, 5, 6]
    assert {"train/loss", "train/norm", "tune/loss", "tune/auroc", "tune/macro_f1", "lr"} <= set(log.seen[0][1])
    assert log.seen[2][1]["tune/auroc"] == result.epochs[2]["tune_auroc"]
    assert [round(row["lr"], 6) for row in result.epochs[:3]] == [0.01, 0.005, 0.0025]


def test_a_device_that_is_not_there_is_said() -> None:
    assert choose_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(ConfigError, match="set it to auto or cpu"):
            choose_device("cuda")


def test_progress_writes_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = Progress(2, stream)
    progress.begin("classify 1/2", 4)
    for _ in range(4):
        progress.step(8)
    progress.end("classify 1/2  train loss 0.5")
    said = stream.getvalue()
    assert said.startswith("classify 1/2  train loss 0.5  ")
    assert "images/s, at most 0:0" in said
    assert said.count("\n") == 1
    assert "\r" not in said
    assert "\x1b" not in said


def test_progress_draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(1, stream)
    progress.begin("classify 1/1", 4, done=2)
    progress.step(8)
    progress.bar.refresh()
    drawn = stream.getvalue()
    progress.end("done")
    assert "classify 1/1" in drawn
    assert "3/4" in drawn
    assert "images/s" in drawn
    assert stream.getvalue().splitlines()[-1].strip().endswith("left")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "get", lambda name: toy.METHOD)
    toy.write_workspace(tmp_path / "out")
    return tmp_path


def run(root: Path, params: Any = None, log: Any = None) -> dict[str, Any]:
    return train_run(params or toy.params({"epochs": 1}), "toy_run", 0, root / "out", root / ".checkpoints", log)


def test_a_run_writes_its_products(workspace: Path) -> None:
    description = run(workspace, log=Record())
    trained, predictions = (workspace / "out" / part / "toy_run" / "0" for part in ("train", "predictions"))
    assert {p.name for p in trained.iterdir()} == {
        "weights.safetensors", "model.json", "embedding.safetensors", "history.csv", "run.json"
    }  # fmt: skip
    assert {p.name for p in predictions.iterdir()} == {
        "tune.parquet", "test.parquet", "external.parquet", "attention.npy", "attention_external.npy"
    }  # fmt: skip
    tune, test = (pd.read_parquet(predictions / f"{role}.parquet") for role in ("tune", "test"))
    common = ["run", "task", "fold", "role", "image_id", "patient_id", "logit_rest", "logit_covid19", "p_rest"]
    assert list(test) == [*common, "p_covid19"]
    assert list(tune) == [*common, "p_covid19", "target"]
    assert (len(tune), len(test)) == (8, 6)  # the test image of another label is dropped
    assert test["image_id"].is_monotonic_increasing
    np.testing.assert_allclose(test["p_rest"] + test["p_covid19"], 1)
    np.testing.assert_allclose(np.log(test["p_covid19"] / test["p_rest"]), test["logit_covid19"] - test["logit_rest"])
    assert list(tune["target"]) == [0, 1] * 4
    heat = np.load(predictions / "attention.npy")
    assert heat.shape == (6, 6, 6)
    assert heat.dtype == np.float16
    assert np.load(predictions / "attention_external.npy").shape == (1, 6, 6)
    assert read_json(trained / "run.json") == {"mlflow_run_id": "abc"}
    assert read_json(trained / "model.json")["seed"] == description["seed"] == 1 + 3 + 0
    assert list(history.read(trained / "history.csv")["phase"]) == ["whole", "head"]
    assert not list((workspace / ".checkpoints").iterdir())


def test_the_test_roles_labels_change_nothing(workspace: Path) -> None:
    run(workspace)
    folder = workspace / "out" / "predictions" / "toy_run" / "0"
    before = (folder / "test.parquet").read_bytes(), (folder / "tune.parquet").read_bytes()
    manifest = pd.read_parquet(workspace / "out" / "manifest.parquet")
    manifest.loc[28:33, "label"] = "covid19"
    write_parquet(workspace / "out" / "manifest.parquet", manifest)
    run(workspace)
    assert ((folder / "test.parquet").read_bytes(), (folder / "tune.parquet").read_bytes()) == before


def _without(role: str, label: str | None = None) -> Callable[[Path], None]:
    def damage(out: Path) -> None:
        splits = pd.read_parquet(out / "splits.parquet")
        labels = pd.read_parquet(out / "manifest.parquet")["label"]
        gone = (splits["role"] == role) & ((labels == label) if label else True)
        write_parquet(out / "splits.parquet", splits[~gone])

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without("train"), "no image has role train"),
        (_without("test"), "no image has role test"),
        (_without("train", "covid19"), "role train has no image of covid19"),
        (_without("tune", "covid19"), "role tune holds rest only"),
        (lambda out: (out / "splits.parquet").unlink(), "splits.parquet is missing"),
        (lambda out: (out / "packs" / "toy" / "data.npy").write_bytes(b"no"), "run `dvc repro`"),
    ],
)
def test_bad_input_is_one_clear_line(damage: Callable[[Path], Any], says: str, workspace: Path) -> None:
    damage(workspace / "out")
    with pytest.raises(DataError) as caught:
        run(workspace)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (workspace / "out" / "train").exists()


def test_a_missing_fold_and_a_wrong_config_are_said(workspace: Path) -> None:
    with pytest.raises(DataError, match="no fold 4 of cohort toys"):
        train_run(toy.params(), "toy_run", 4, workspace / "out", workspace / ".checkpoints")
    with pytest.raises(ChestflowError, match=r"runs\.toy_run\.config\.depth is unknown"):
        run(workspace, toy.params({"depth": 3}))


def test_training_imports_on_a_bare_gpu_node(repository: Path) -> None:
    """Networks, losses, methods and the engine import with torch and the scientific basics alone."""
    script = """
import builtins, importlib, pkgutil, sys
BASICS = {"torch", "torchvision", "numpy", "scipy", "pandas", "sklearn", "safetensors"}  # scikit-learn brings scipy
ALLOWED = sys.stdlib_module_names | BASICS | {"chestflow"}
ordinary, seen, barred = builtins.__import__, set(), set()
def watched(name, globals=None, locals=None, fromlist=(), level=0):
    importer, top = (globals or {}).get("__name__") or "", name.partition(".")[0]
    if importer.startswith("chestflow.") and level == 0:
        seen.add(top)
        if top not in ALLOWED:
            barred.add((importer, top))
    return ordinary(name, globals, locals, fromlist, level)
builtins.__import__ = watched
for part in ("nn", "losses", "methods", "training"):
    package = importlib.import_module(f"chestflow.{part}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"chestflow.{part}.{module.name}")
assert {"torch", "numpy", "chestflow"} <= seen
print(sorted(barred))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=repository, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
