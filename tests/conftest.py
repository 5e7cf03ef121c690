"""Shared fixtures: real data through one variable, and telemetry off."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.update(
    {"DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "GX_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
)
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: threads of their own would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
PIPELINE = "tests/pipeline/"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers (``-n 2``) the tests of a file stay together, and those of the pipeline, which share one run
    of the whole DAG. They are the most, so they begin.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return PIPELINE if file.startswith(PIPELINE) else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout under test."""
    return ROOT


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real image sets, or a skip with the reason."""
    folder = os.environ.get("CHESTFLOW_REALDATA")
    if not folder:
        pytest.skip("CHESTFLOW_REALDATA is unset: the real image sets are not here")
    path = Path(folder)
    if not path.is_dir():
        pytest.skip(f"CHESTFLOW_REALDATA names {path}, which is not a folder")
    return path
