"""Two processes that share every batch (gloo) train as one process does with the whole batch."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path
from subprocess import run

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests import toy
from tests.model.test_resume import CONTEXT

# No batch norm, dropout or augmentation: they see a process's share, or draw from its own stream.
PLAIN = {"norm": False, "dropout": 0.0, "augment": False, "epochs": 2, "batch_size": 7, "clip_norm": 0.5}
SCRIPT = """
import sys
from pathlib import Path
from tests import toy
toy.train(Path(sys.argv[1]), {config})
"""


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    toy.write_workspace(tmp_path / "one" / "out")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    return tmp_path / "one", tmp_path / "two"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def alone(root: Path, config: dict) -> None:
    process = CONTEXT.Process(target=toy.train, args=(root, config))
    process.start()
    process.join(120)
    assert process.exitcode == 0


def assert_same_training(one: Path, two: Path) -> None:
    first, second = (pd.read_csv(r / "out/train/toy_run/0/history.csv") for r in (one, two))
    assert list(first) == list(second)
    for column in ("train_loss", "tune_loss", "tune_auroc"):
        np.testing.assert_allclose(first[column], second[column], rtol=1e-5)
    weights = [load_file(r / "out/train/toy_run/0/weights.safetensors") for r in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)
    tests = [pd.read_parquet(r / "out/predictions/toy_run/0/test.parquet") for r in (one, two)]
    assert list(tests[0]["image_id"]) == list(tests[1]["image_id"])
    np.testing.assert_allclose(tests[0]["p_covid19"], tests[1]["p_covid19"], atol=1e-5)


def test_two_processes_with_micro_batches_train_as_one(roots: tuple[Path, Path]) -> None:
    one, two = roots
    config = PLAIN | {"accumulate": 2}
    alone(one, config)
    port = free_port()
    pair = [CONTEXT.Process(target=toy.train, args=(two, config), kwargs={"ranks": (rank, 2, port)}) for rank in (0, 1)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(120)
    assert [p.exitcode for p in pair] == [0, 0]
    assert_same_training(one, two)


def test_torchrun_starts_it(roots: tuple[Path, Path], repository: Path) -> None:
    one, two = roots
    alone(one, PLAIN)
    script = two / "train_toy.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(repository)!r})\n{SCRIPT.format(config=PLAIN)}")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    done = run([*command, str(free_port()), str(script), str(two)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("whole 1/2") == 1  # the first process alone speaks
    assert_same_training(one, two)
