"""What determines a training's result, and so where an interrupted one keeps its state."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from chestflow.files import sha256_file
from chestflow.training import tables, uses
from chestflow.training.checkpoints import key, place

_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


def checkpoint_folder(params: Any, run: str, fold: int, out: Path, checkpoints: Path) -> Path:
    """Where an interrupted run keeps its state: under a hash of all that determines its result.

    What does not change the result, such as how often a checkpoint is written, is not in the hash.
    """
    section = params.runs[run]
    task = params.tasks[section.task]
    roles = tables.role_tables(task, section.task, fold, out)
    folder = out / "packs" / section.recipe
    package = Path(__file__).parent.parent
    built = [run, *(name for role, name in section.uses.items() if role == "global")]
    code = [package / "methods" / f"{params.runs[name].method}.py" for name in built]
    code += [p for part in ("nn", "losses", "training") for p in sorted((package / part).glob("*.py"))]
    facts = {
        "run": [run, fold, params.seed, section.seed, section.method, section.config],
        "uses": uses.fingerprint(params, run, fold, out),
        "task": [task.cohort, task.classes],
        "engine": [params.engine.device, params.engine.amp, params.engine.threads, version("torch")],
        "roles": {r: hashlib.sha256(t.to_csv(index=False).encode()).hexdigest() for r, t in sorted(roles.items())},
        "pack": {f.name: _sampled_digest(f) for f in sorted(folder.glob("*.*")) if not f.name.startswith(".")},
        "code": {f"{p.parent.name}/{p.name}": sha256_file(p) for p in code if p.exists()},
    }
    return place(checkpoints, key(facts), run, fold)


def _sampled_digest(path: Path) -> str:
    """Hash of a file's size and of blocks spread over it: enough to notice a pack that was made anew."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as stream:
        for position in np.unique(np.linspace(0, max(size - _BLOCK_BYTES, 0), _BLOCKS, dtype=np.int64)):
            stream.seek(int(position))
            digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()
