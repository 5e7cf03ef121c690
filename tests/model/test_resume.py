"""One seed gives the same bytes twice, and so does a training that was really killed and started again."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import toy

CONTEXT = multiprocessing.get_context("forkserver")
# What a training would import late is imported once, in the server that the processes are forked from.
LATE = ["sklearn.covariance", "pyarrow.parquet", "safetensors.torch", "torch._dynamo", "chestflow.training.engine"]
CONTEXT.set_forkserver_preload(["tests.toy", *LATE])
# 20 images in batches of 6 with two micro-batches each: 4 steps of 7 micro-batches an epoch, 2 epochs, 2 phases.
CONFIG = {"accumulate": 2, "aid": True}
EVERY = {"checkpoint_every": 2}


def train(root: Path, **how: Any) -> int:
    """Train in a fresh process; its exit code, negative for a signal that ended it."""
    process = CONTEXT.Process(target=toy.train, args=(root, CONFIG), kwargs={"engine": EVERY, **how})
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the training hangs"
    return process.exitcode


def products(root: Path) -> dict[str, bytes]:
    folders = (root / "out" / "train", root / "out" / "predictions")
    return {str(p.relative_to(root)): p.read_bytes() for f in folders for p in sorted(f.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    toy.write_workspace(root / "out")
    return root


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted training writes."""
    root = tmp_path_factory.mktemp("whole") / "copy"
    shutil.copytree(inputs, root)
    assert train(root) == 0
    found = products(root)
    assert len(found) == 10
    return found


@pytest.fixture
def root(inputs: Path, tmp_path: Path) -> Path:
    shutil.copytree(inputs, tmp_path / "copy")
    return tmp_path / "copy"


def test_two_trainings_of_one_seed_write_the_same_bytes(root: Path, whole: dict[str, bytes]) -> None:
    assert train(root) == 0
    assert products(root) == whole
    assert not list((root / ".checkpoints").iterdir())


def test_another_interval_of_checkpoints_changes_nothing(root: Path, whole: dict[str, bytes]) -> None:
    assert train(root, engine={"checkpoint_every": None}) == 0
    assert products(root) == whole


@pytest.mark.parametrize(
    ("micro_batch", "number"),
    [
        (1, signal.SIGKILL),  # before any checkpoint
        (5, signal.SIGKILL),  # mid-epoch, after the checkpoint of step 2, between two micro-batches
        (8, signal.SIGTERM),  # the second epoch's first
        (13, signal.SIGTERM),  # the second epoch's last step
        (15, signal.SIGKILL),  # the second phase's first
        (26, signal.SIGKILL),  # the last epoch
    ],
)
def test_a_killed_training_continues_to_the_same_bytes(
    micro_batch: int, number: int, root: Path, whole: dict[str, bytes]
) -> None:
    code = train(root, kill=(micro_batch, number))
    assert code == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    assert not products(root)
    assert (micro_batch > 1) == bool(list(root.rglob("checkpoint.json")))
    assert train(root) == 0
    assert products(root) == whole
    assert not list((root / ".checkpoints").iterdir())


def test_killed_again_and_again_and_while_writing_a_checkpoint(root: Path, whole: dict[str, bytes]) -> None:
    assert train(root, kill_saving=3) == -signal.SIGKILL
    assert list(root.rglob(".state.partial"))
    for micro_batch in (7, 3, 9):
        assert train(root, kill=(micro_batch, signal.SIGKILL)) == -signal.SIGKILL
    assert train(root) == 0
    assert products(root) == whole
    assert not list((root / ".checkpoints").iterdir())


def test_a_damaged_checkpoint_starts_anew_and_ends_the_same(root: Path, whole: dict[str, bytes]) -> None:
    assert train(root, kill=(10, signal.SIGKILL)) == -signal.SIGKILL
    (state,) = root.rglob("state-*.pt")
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 0xFF
    state.write_bytes(content)
    assert train(root) == 0
    assert products(root) == whole
