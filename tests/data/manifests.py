"""Synthetic manifests: rows that keep to every expectation, and thumbnails without files."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd

from chestflow.config import Cohort, Task, Validation
from chestflow.data.findings import RULES, Dataset, Finding
from chestflow.data.manifest import conform


def hexes(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def row(number: int, label: str | None = "normal", source: str = "alpha", **more: Any) -> dict[str, Any]:
    """One X-ray of a patient of its own."""
    modality = more.get("modality", "cxr")
    values = {
        "image_id": f"{source}-{hexes(f'{source}{number}', 12)}",
        "source": source,
        "modality": modality,
        "path": f"data/{source}/{number}.png",
        "label": label,
        "patient_id": f"{source}-{hexes(f'patient{number}', 12)}",
        "width": 256,
        "height": 256,
        "depth": 32 if modality == "ct_volume" else 1,
        "bits": 8,
        "color_mode": "HU" if modality == "ct_volume" else "L",
        "file_format": "png",
        "sha256": hexes(f"bytes{source}{number}", 64),
        "phash": None if modality == "ct_volume" else hexes(f"picture{source}{number}", 16),
        "licence": "CC0-1.0",
        "commercial_use": True,
    }
    return values | more


def manifest(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return conform(pd.DataFrame(rows))


def mixed(count: int = 40, source: str = "alpha", **more: Any) -> list[dict[str, Any]]:
    """``count`` patients, every second one with COVID-19."""
    return [row(i, "covid19" if i % 2 else "normal", source, **more) for i in range(count)]


def thumbnails_by(phash_of: pd.DataFrame) -> np.ndarray:
    """A random thumbnail for each perceptual hash: equal hashes are the same picture, others are not."""
    return np.stack([np.random.default_rng(int(h, 16) % 2**32).random((32, 32), np.float32) for h in phash_of["phash"]])


def dataset(rows: list[dict[str, Any]], **more: Any) -> Dataset:
    """One cohort over the sets that occur, one task of normal against COVID-19."""
    table = manifest(rows)
    values: dict[str, Any] = {
        "manifest": table,
        "rejects": pd.DataFrame({"source": [], "image_id": [], "reason": [], "detail": []}, dtype=str),
        "cohorts": {"chests": Cohort(sets=sorted(table["source"].unique()), modality="cxr")},
        "tasks": {"task": Task(cohort="chests", classes={"rest": ["normal", "pneumonia"], "covid19": ["covid19"]})},
        "settings": Validation(min_images_per_class=5),
    }
    return Dataset(**(values | more))


def fired(name: str, data: Dataset) -> list[Finding]:
    return RULES[name].findings(data)
