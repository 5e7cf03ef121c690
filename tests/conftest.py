"""Shared fixtures: real data through one variable, and telemetry off."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.update(
    {"DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "GX_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
)
ROOT = Path(__file__).resolve().parent.parent


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
