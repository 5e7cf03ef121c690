"""Bundles of the toy models in a folder, ready to answer without MLflow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from chestflow.serving import bundle
from chestflow.tracking.packing import describe, studies
from tests.model import toy_models


def write(folder: Path, name: str, folds: int = 1, **changes: Any) -> bundle.Bundle:
    """Write the bundle of a run or ensemble of the toys; ``changes`` are fields of it."""
    from dataclasses import replace

    out = toy_models.trained(folds) / "out"
    params = toy_models.params(folds=list(range(folds)))
    described = replace(describe(params, name, out), **changes)
    shutil.rmtree(folder, ignore_errors=True)
    bundle.write(described, folder, out, calibration=tuple(studies(params, name, out).values()))
    return described
