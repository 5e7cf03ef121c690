"""What a run shows besides its curves: test figures, pictures, tables, the evaluation and the studies."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from chestflow.files import read_json
from chestflow.tracking import evidence as read
from chestflow.tracking import store
from chestflow.tracking.runs import log_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient


def attach_evaluation(client: MlflowClient, run_id: str, found: dict[str, Any], name: str, out: Path) -> None:
    """Test figures as metrics; the evaluation's JSON, pictures and tables under ``evaluation/``."""
    log_metrics(client, run_id, read.mlflow_metrics(read.figures(found)))
    with store.clear_errors("attaching the evaluation"), tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(out / "evaluate" / f"{name}.json", Path(folder) / "evaluation.json")
        for file in sorted((out / "evaluate" / name).rglob("*")):
            if file.suffix in (".png", ".svg", ".csv"):
                shutil.copyfile(file, Path(folder) / file.name)
        client.log_artifacts(run_id, folder, "evaluation")


def attach_studies(client: MlflowClient, run_id: str, studies: dict[str, Path]) -> None:
    """The trials of each study as a table and a plot under ``tuning/``, and its chosen values as metrics.

    Args:
        client: of the store.
        run_id: whose.
        studies: a short name of each, and its JSON.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, path in studies.items():
            value = read_json(path)
            chosen = {
                f"tuned/{name}/{key}": value[key]
                for key in ("temperature", "threshold", "w_extreme", "w_middle", "cut_low", "cut_high")
                if isinstance(value.get(key), int | float)
            }
            log_metrics(client, run_id, chosen)
            trials = trials_table(value.get("trials"))
            if len(trials):
                trials.to_csv(Path(folder) / f"{name}.csv", index=False)
                _plot(trials, name, Path(folder) / f"{name}.png")
        if any(Path(folder).iterdir()):
            with store.clear_errors("attaching the studies"):
                client.log_artifacts(run_id, folder, "tuning")


def trials_table(trials: Any) -> pd.DataFrame:
    """One row a trial; several studies in one mapping are stacked under ``study``."""
    if isinstance(trials, dict):
        parts = [trials_table(rows).assign(study=name) for name, rows in sorted(trials.items())]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if not isinstance(trials, list):
        return pd.DataFrame()
    return pd.json_normalize([row for row in trials if isinstance(row, dict)])


def _plot(trials: pd.DataFrame, name: str, path: Path) -> None:
    """Each trial's objective, in order."""
    column = next((c for c in ("value", "objective", "score", "loss") if c in trials), None)
    if column is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    groups = trials.groupby("study") if "study" in trials else [(name, trials)]
    for label, rows in groups:
        axes.plot(range(len(rows)), rows[column].astype(float), "o-", markersize=3, linewidth=0.8, label=str(label))
    axes.set(xlabel="trial", ylabel=column, title=name)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
