"""The report's tables about data: what came in, what was refused, who is in which role."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from chestflow.files import read_json, read_parquet

ROLES = ("train", "tune", "test", "external", "excluded")


@dataclass
class Table:
    """A table of the page: cells are text, numbers, or mappings with value, lo and hi."""

    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)  # columns set to the left
    wrap: list[str] = field(default_factory=list)  # columns whose text may take several lines
    title: str = ""
    note: str = ""


def flow(manifest: pd.DataFrame, rejects: pd.DataFrame) -> Table:
    """Images, patients and labels a set and modality, with what was refused."""
    table = Table(["set", "modality", "images", "patients", "labels"], text=["set", "modality"], wrap=["labels"])
    for (source, modality), rows in manifest.groupby(["source", "modality"]):
        labels = ", ".join(f"{label} {n}" for label, n in rows["label"].value_counts().sort_index().items())
        table.rows.append([source, modality, str(len(rows)), str(rows["patient_id"].nunique()), labels])
    table.note = f"{len(rejects)} files were refused at ingest."
    return table


def refused(rejects: pd.DataFrame) -> Table:
    """How many files each reason refused."""
    table = Table(["set", "reason", "files"], text=["set", "reason"])
    for (source, reason), rows in rejects.groupby(["source", "reason"]):
        table.rows.append([source, reason, str(len(rows))])
    return table


def roles(splits: pd.DataFrame, folds: list[int]) -> Table:
    """Images and groups in each role, a cohort and fold."""
    table = Table(["cohort", "fold", *ROLES], text=["cohort"], title="Roles")
    kept = splits[splits["fold"].isin(folds)]
    for (cohort, fold), rows in kept.groupby(["cohort", "fold"]):
        cells = []
        for role in ROLES:
            mine = rows[rows["role"] == role]
            cells.append(f"{len(mine)} ({mine['group_id'].nunique()})" if len(mine) else "–")
        table.rows.append([cohort, str(fold), *cells])
    table.note = "Images, and in brackets the groups (patient, identical file or same picture) that stay together."
    return table


def about_splits(report: dict[str, Any]) -> tuple[str, list[dict[str, str]]]:
    """What ``splits.json`` says beside the roles: who was excluded and why, as text, and the cohorts' warnings."""
    said, warnings = [], []
    for name, about in report["cohorts"].items():
        count = sum(about["excluded"].values())
        if count:
            why = ", ".join(f"{reason.replace('_', ' ')} {n}" for reason, n in sorted(about["excluded"].items()))
            said.append(f"Cohort {name}: {count} image{'' if count == 1 else 's'} excluded ({why}).")
        warnings += [{"rule": "split", "message": sentence} for sentence in about["warnings"]]
    return " ".join(said), warnings


def about_data(out: Path, folds: list[int]) -> dict[str, Any]:
    """Everything that the page says about data, read from the stages' files."""
    manifest = read_parquet(out / "manifest.parquet")
    rejects = pd.read_csv(out / "rejects.csv")
    validation = read_json(out / "validation.json")
    excluded, warnings = about_splits(read_json(out / "splits.json"))
    placed = roles(read_parquet(out / "splits.parquet"), folds)
    placed.note = f"{placed.note} {excluded}".strip()
    return {
        "flow": flow(manifest, rejects),
        "rejects": refused(rejects),
        "roles": placed,
        "warnings": [*validation["critical"], *validation["warnings"], *warnings],
        "duplicates": " ".join(read_json(out / "pooling.json")["shared"]["sentences"]),
    }
