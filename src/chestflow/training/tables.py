"""Which images a run trains, tunes and tests on, with their class and infection ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestflow.errors import DataError
from chestflow.files import read_parquet
from chestflow.segmentation import places

#: Roles that get predictions but never show their labels.
UNSEEN = ("test", "external")


def role_tables(task: Any, name: str, fold: int, out: Path) -> dict[str, pd.DataFrame]:
    """Tables of the roles train, tune, test and external, sorted by image_id.

    Columns: image_id, patient_id, ratio (NaN where unknown), and target in train and tune. Rows whose label is in
    none of the task's classes are dropped; so are, from external sets, labels that the task does not know.

    Args:
        task: with ``cohort`` and ``classes`` (class -> labels, in index order).
        name: the task's, for messages.
        out: the folder of splits.parquet, manifest.parquet and the ratios of the cohort's modality.

    Raises:
        DataError: the cohort has no such fold, or a role lacks images or classes that training needs.
    """
    splits = read_parquet(out / "splits.parquet")
    splits = splits[(splits["cohort"] == task.cohort) & (splits["fold"] == fold)]
    if splits.empty:
        raise DataError(
            f"{out}/splits.parquet has no fold {fold} of cohort {task.cohort}: check `folds`, run the split"
        )
    manifest = read_parquet(out / "manifest.parquet")[["image_id", "patient_id", "label", "modality"]]
    joined = splits[["image_id", "role"]].merge(manifest, on="image_id")
    ratio = places.ratios(out, joined["modality"].iloc[0])[["image_id", "ratio"]]  # a cohort has one modality
    joined = joined.drop(columns="modality").merge(ratio, on="image_id", how="left")
    joined["ratio"] = joined["ratio"].astype("Float64").to_numpy(float, na_value=np.nan)
    joined["target"] = joined["label"].map(label_indices(task.classes))
    joined = joined.dropna(subset=["target"]).astype({"target": "int64"}).sort_values("image_id", ignore_index=True)
    tables = {}
    for role in ("train", "tune", *UNSEEN):
        table = joined[joined["role"] == role].drop(columns=["role", "label"]).reset_index(drop=True)
        if role != "external":
            require(table, role, name, fold, list(task.classes))
        tables[role] = table.drop(columns="target") if role in UNSEEN else table
    return tables


def label_indices(classes: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """label -> class index."""
    return {label: index for index, labels in enumerate(classes.values()) for label in labels}


def require(table: pd.DataFrame, role: str, name: str, fold: int, classes: list[str]) -> None:
    """Refuse a role without the images or classes that training needs.

    Raises:
        DataError: as its message says.
    """
    where = f"task {name}, fold {fold}"
    if table.empty:
        raise DataError(f"{where}: no image has role {role}: give the cohort more patients or change split.tune_share")
    missing = [c for index, c in enumerate(classes) if index not in set(table["target"])]
    # A network cannot learn a class it never sees; tune needs COVID-19 and something else to rank.
    if role == "train" and missing:
        raise DataError(f"{where}: role train has no image of {', '.join(missing)}: add some, or change the task")
    if role == "tune" and (table["target"].nunique() < 2 or classes[-1] in missing):
        held = ", ".join(c for c in classes if c not in missing)
        raise DataError(f"{where}: role tune holds {held} only, so no epoch can be chosen: add patients")
