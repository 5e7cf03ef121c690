"""history.csv: one row per epoch. It holds no times, so that the same training writes the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from chestflow.files import atomic_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write epochs as CSV; a column that some phases lack stays empty there."""
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.8g", lineterminator="\n")


def read(path: Path) -> pd.DataFrame:
    """Read it back."""
    return pd.read_csv(path)


def summary(row: dict[str, Any], epochs: int, monitor: str) -> str:
    """One line about an epoch for people: ``classify 3/50  train loss 0.512  tune loss 0.498  auroc 0.873 (best)``."""
    parts = [f"{row['phase']} {row['epoch']}/{epochs}", f"train loss {row['train_loss']:.4f}"]
    if "tune_loss" in row:
        parts.append(f"tune loss {row['tune_loss']:.4f}")
    if monitor != "loss":
        parts.append(f"{monitor} {row['tune_' + monitor]:.4f}")
    return "  ".join(parts) + (" (best)" if row["best"] else "")


def metrics(row: dict[str, Any]) -> dict[str, float]:
    """An epoch's row under the names of metrics: ``train_loss`` becomes ``train/loss``."""
    named = {k.replace("_", "/", 1): float(v) for k, v in row.items() if k.startswith(("train_", "tune_"))}
    return {**named, "lr": float(row["lr"])}
