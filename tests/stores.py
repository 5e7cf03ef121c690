"""MLflow stores for tests: one database is made a session, each test gets a copy."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

from chestflow.tracking import store


@cache
def _made() -> Path:
    root = Path(tempfile.mkdtemp(prefix="chestflow-store-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("DVC_ROOT", str(root))
        store.initialise()
    return root / "mlflow.db"


def give(root: Path, patch: pytest.MonkeyPatch) -> Path:
    """Put an empty store into ``root`` and make it this process's own, and ``root`` the current folder."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy2(_made(), root / "mlflow.db")
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.setenv("DVC_ROOT", str(root))
    patch.chdir(root)
    return root
