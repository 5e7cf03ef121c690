"""Tracking a set by a .dvc file of its own, with the dvc of this environment."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from chestflow.errors import DataError


def _dvc(*arguments: str) -> None:
    if find_spec("dvc") is None:
        raise DataError("dvc is not installed here: install chestflow with its pipeline extra")
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    first = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no message")
    message = first.removeprefix("ERROR: ")
    if "git-ignored" in message:
        message += "; .gitignore should say /data/?* and !/data/*.dvc (with /data/* DVC passes over the whole folder)"
    raise DataError(f"dvc {arguments[0]} failed, the set's files are in place: {message}")


def tracked_by(folder: Path) -> Path | None:
    """The .dvc file that tracks a set's folder, or None."""
    own = folder.with_name(f"{folder.name}.dvc")
    shared = Path("data.dvc")  # the embedded cohort's
    return own if own.is_file() else shared if folder.name == "phantom" and shared.is_file() else None


def require_repository() -> None:
    """Raise :class:`DataError` outside the root of a DVC repository."""
    if not Path(".dvc").is_dir():
        raise DataError("this folder is no DVC repository: run the command in the root of the project")


def track(folder: Path, keep_links: bool = False) -> Path:
    """Track a set's folder as it is now, and return its .dvc file, which is left out of git's index.

    Whether to commit that file is the user's choice: a clone that cannot pull the data would miss them.

    Args:
        keep_links: leave hard links in place, where DVC would put copies of its cache.

    Raises:
        DataError: this is no DVC repository, dvc is missing, or it failed.
    """
    require_repository()
    file = tracked_by(folder)
    if file is not None and file.name == "data.dvc":
        _dvc("commit", "--force", file.as_posix())
        return file
    _dvc("add", *(["--no-relink"] if keep_links else []), folder.as_posix())
    made = folder.with_name(f"{folder.name}.dvc")
    if file is None:
        # With core.autostage on, dvc has just staged it.
        subprocess.run(["git", "reset", "--quiet", "--", made.as_posix()], capture_output=True, check=False)
    return made
