"""`chestflow ui` as a server: two processes on loopback, and models that survive a moved checkout."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chestflow.tracking import lookup, registry, store
from tests import stores
from tests.model import toy_models


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _served(root: Path) -> Iterator[tuple[str, int]]:
    """The server over a checkout's store; yields its address and process id."""
    port = _free_port()
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "DVC_ROOT")}
    code = f"import sys; from chestflow.tracking.server import serve; sys.exit(serve({port}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, env=environment, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.5)
        yield address, process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def _children(pid: int) -> int:
    """Processes below one, itself not counted."""
    below = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return len(below) + sum(_children(int(child)) for child in below)


def test_a_moved_checkout_keeps_its_models_in_the_server_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = stores.give(tmp_path / "here", monkeypatch)
    shutil.copytree(toy_models.trained() / "out", root / "out")
    with _served(root) as (address, pid):
        assert _children(pid) <= 3
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        registry.register(toy_models.params(), "plain")
        version = lookup.resolve(store.connect(), "plain")
    shutil.move(root, tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    with _served(tmp_path / "there") as (address, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert lookup.resolve(store.connect(), "plain") == version
        found, bundle, _ = lookup.evidence(version)
        assert found == toy_models.evaluation()
        assert bundle.name == "plain"
        with lookup.files(version) as folder:
            assert (folder / "networks/plain-0/weights.safetensors").stat().st_size > 1000
