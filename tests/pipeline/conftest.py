"""A repository of its own, in which the tiny profile has run from raw phantoms to registered models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TRACKED = ("src", "stages", "profiles", "dvc.yaml", "pyproject.toml", ".dvc/config", ".dvcignore", ".gitignore")


@dataclass
class Repository:
    """A checkout in which commands run with its own copy of the package."""

    root: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        binaries = Path(sys.executable).parent
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")},
            "PYTHONPATH": str(self.root / "src"),
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "160",
        }

    def run(self, *command: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout; on an unexpected failure the test shows all that it printed."""
        start = _spent()
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        self.seconds[" ".join(command)] = _spent() - start
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(command)} ended {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
        return done


def _spent() -> float:
    """Seconds of processor time of all commands that have ended: other work on the cores does not count."""
    used = os.times()
    return used.children_user + used.children_system


def checkout(repository: Path, root: Path) -> Repository:
    """A fresh repository with the files that a clone would have, without data."""
    for name in TRACKED:
        source, target = repository / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    (root / "data").mkdir()
    fresh = Repository(root)
    fresh.run("git", "init", "-q", "-b", "main")
    fresh.run("git", "config", "user.email", "tests@example.org")
    fresh.run("git", "config", "user.name", "Tests")
    (root / ".dvc" / "tmp").mkdir(exist_ok=True)
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    return fresh


@pytest.fixture(scope="session")
def tiny(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The tiny profile, run once for all tests that look at its results."""
    made = checkout(repository, tmp_path_factory.mktemp("tiny") / "chestflow")
    made.run("chestflow", "config", "tiny")
    made.run("chestflow", "data", "phantom", "--patients", "48")
    made.run("dvc", "add", "-q", "data/phantom")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "start")
    made.run("chestflow", "tracking", "init")
    made.run("dvc", "repro", timeout=1400)
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "tiny run")
    return made
