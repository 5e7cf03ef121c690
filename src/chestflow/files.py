"""Writing files so that nothing half-written is ever read as whole, and the same content gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestflow.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

#: What describes a trained network and holds its weights.
MODEL, WEIGHTS = "model.json", "weights.safetensors"
#: Attention maps beside a run's predictions, by role: training writes them, evaluation reads them.
ATTENTION_FILES = {"test": "attention.npy", "external": "attention_external.npy"}
#: The test role's vectors before the last layer, beside the predictions of runs on CT slices.
EMBEDDING_FILE = "embedding.npy"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    os.chmod(name, 0o644)
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Reduce numpy scalars, arrays, paths and tuples to what JSON holds; NaN and infinities become null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON with sorted keys; NaN becomes null, so that strict readers accept the file."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plain(value), indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one raises :class:`DataError` naming it."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run `dvc repro` (or `make repro`) to make it") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON ({error.msg}): delete it and run `dvc repro` again") from None


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as parquet, atomically."""
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a parquet table; a missing one raises :class:`DataError` naming it."""
    if not Path(path).exists():
        raise DataError(f"{path} is missing: run `dvc repro` (or `make repro`) to make it")
    import pandas as pd  # here, so that worker processes which only write files start without it

    return pd.read_parquet(path)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
