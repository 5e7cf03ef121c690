"""Checkpoints: what an interrupted training needs to go on as if nothing had happened.

A folder holds ``checkpoint.json``, which names the one state file that counts and its sha256. The state is written
first, then the JSON replaces its predecessor in one step, then older states go. Killed anywhere in between, the JSON
names a whole state.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chestflow.errors import DataError
from chestflow.files import plain, read_json, sha256_file, write_json

POINTER = "checkpoint.json"


def key(facts: Mapping[str, Any]) -> str:
    """A short hash of everything that determines a training's result."""
    return hashlib.sha256(json.dumps(plain(dict(facts)), sort_keys=True).encode()).hexdigest()[:16]


def place(root: Path, key: str, run: str, fold: int) -> Path:
    """The folder of one run and fold under one configuration."""
    return root / key / run / str(fold)


def save(folder: Path, state: dict[str, Any], position: dict[str, Any]) -> None:
    """Replace the folder's checkpoint by ``state`` (plain values and tensors); ``position`` is for readers.

    Raises:
        OSError: the disk is full or the folder cannot be written; the earlier checkpoint stays whole.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".state.partial"
    torch.save(state, temporary)
    digest = sha256_file(temporary)
    name = f"state-{digest[:16]}.pt"
    temporary.replace(folder / name)
    write_json(folder / POINTER, {"file": name, "sha256": digest, **position})
    for old in folder.glob("state-*.pt"):
        if old.name != name:
            old.unlink()


def load(folder: Path) -> dict[str, Any] | None:
    """The folder's state on the CPU, or None where there is none.

    A damaged checkpoint is thrown away with one line on stderr: training then starts anew and, because everything is
    drawn from seeds, ends with the same weights, only later.
    """
    import torch

    if not (folder / POINTER).exists():
        return None
    try:
        pointer = read_json(folder / POINTER)
        path = folder / pointer["file"]
        if sha256_file(path) != pointer["sha256"]:
            raise ValueError("its checksum does not fit")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except (DataError, KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
        reason = "a part of it is missing" if isinstance(error, OSError | KeyError | TypeError) else str(error)
        print(f"warning: the checkpoint in {folder} cannot be used ({reason}): training starts anew", file=sys.stderr)
        clear(folder)
        return None


def clear(folder: Path) -> None:
    """Remove the folder's checkpoint, and the folder and its parents up to the key where nothing else is in them."""
    (folder / POINTER).unlink(missing_ok=True)
    for leftover in (*folder.glob("state-*.pt"), *folder.glob(".state.partial"), *folder.glob(f".{POINTER}.*")):
        leftover.unlink(missing_ok=True)
    for parent in (folder, folder.parent, folder.parent.parent):
        try:
            parent.rmdir()
        except OSError:
            return
