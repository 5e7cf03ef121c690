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
    log_metrics(client, run_id, read.mlflow_metrics(found))
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
    from chestflow.tuning.studies import history_plot

    with tempfile.TemporaryDirectory() as folder:
        for name, path in studies.items():
            value = read_json(path)
            chosen = {
                f"tuned/{name}/{key}": value[key]
                for key in ("temperature", "threshold", "w_extreme", "w_middle", "cut_low", "cut_high")
                if isinstance(value.get(key), int | float)
            }
            used = value.get("used") or {}
            if "members" in value:
                chosen |= {f"used/{name}/weight_{run}": float(used[run]) for run in value["members"]}
            if isinstance(value.get("default"), dict):
                chosen |= {f"used/{name}/{key}": v for key, v in value["default"].items() if v is not None}
            log_metrics(client, run_id, chosen)
            trials = value.get("trials") or []
            if trials:
                pd.json_normalize(trials).to_csv(Path(folder) / f"{name}.csv", index=False)
                history_plot(trials, Path(folder) / f"{name}.png", name)
        if any(Path(folder).iterdir()):
            with store.clear_errors("attaching the studies"):
                client.log_artifacts(run_id, folder, "tuning")
