"""Which training runs in the store saw a patient, earlier ones included whose files are long replaced."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from chestflow.files import read_parquet
from chestflow.tracking import store
from chestflow.tracking.runs import IMAGES

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Saw:
    """A run that saw a patient, in these roles (train, tune, test ...)."""

    run_id: str
    name: str
    roles: tuple[str, ...]


def _all_runs(client: MlflowClient) -> list[object]:
    experiments = [e.experiment_id for e in client.search_experiments() if e.name.startswith("chestflow-")]
    found: list[object] = []
    token = None
    while experiments:
        page = client.search_runs(experiments, "tags.images_digest != ''", max_results=500, page_token=token)
        found += list(page)
        token = page.token
        if not token:
            break
    return found


def runs_that_saw(patient_id: str, out: Path = Path("out")) -> list[Saw]:
    """The training runs whose images hold a patient, by the tables that the runs keep; the stages ``infection`` and
    ``pretrain`` among them, whose networks others take over.

    Runs with the same images are looked up once. A run whose table is gone counts by ``out/splits.parquet``.

    Raises:
        TrackingError: the store cannot be used.
    """
    client = store.connect()
    roles: dict[tuple[str, str], tuple[str, ...]] = {}
    result = []
    with store.clear_errors("searching runs"):
        for run in _all_runs(client):
            tags = run.data.tags  # type: ignore[attr-defined]
            key = (tags["images_digest"], tags["fold"])
            run_id = run.info.run_id  # type: ignore[attr-defined]
            if key not in roles:
                roles[key] = _roles(client, run_id, tags, patient_id, out)
            if roles[key]:
                result.append(Saw(run_id, run.info.run_name, roles[key]))  # type: ignore[attr-defined]
    return sorted(result, key=lambda saw: (saw.name, saw.run_id))


def _roles(client: MlflowClient, run_id: str, tags: dict[str, str], patient_id: str, out: Path) -> tuple[str, ...]:
    from mlflow.exceptions import MlflowException

    try:
        with tempfile.TemporaryDirectory() as folder:
            table = pd.read_csv(client.download_artifacts(run_id, IMAGES, folder), dtype=str)
    except (MlflowException, OSError):
        splits = read_parquet(out / "splits.parquet")
        mine = splits[(splits["cohort"] == tags.get("cohort")) & (splits["fold"].astype(str) == tags["fold"])]
        manifest = read_parquet(out / "manifest.parquet")[["image_id", "patient_id"]]
        table = mine[["image_id", "role"]].merge(manifest, on="image_id")
    found = table.loc[table["patient_id"] == patient_id, "role"].unique()
    return tuple(sorted(str(role) for role in found if role != "excluded"))
