"""Which runs have seen a patient: by the splits and training outs that are here, and by what MLflow keeps of others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from chestflow.config import Params
from chestflow.errors import DataError, TrackingError
from chestflow.files import read_json, read_parquet

#: A network learns from the first, its choices (stopping, thresholds) from the second, its figures from the others.
SHAPING = ("train", "tune")


@dataclass(frozen=True)
class Exposure:
    """One trained network and the roles in which it saw a patient."""

    run: str
    fold: int | None  # None where the run's name says it
    roles: tuple[str, ...]
    mlflow_run_id: str | None

    @property
    def learned(self) -> bool:
        """Whether weights or choices depend on the patient, and not only figures."""
        return any(role in SHAPING for role in self.roles)


def trained_here(image_ids: Iterable[str], params: Params, out: Path = Path("out")) -> list[Exposure]:
    """Trained runs in whose cohort and fold one of the images has a role, by run and fold."""
    if not (out / "splits.parquet").exists():
        return []
    splits = read_parquet(out / "splits.parquet")
    splits = splits[splits["image_id"].isin(set(image_ids)) & (splits["role"] != "excluded")]
    found = []
    for name, run in sorted(params.runs.items()):
        cohort = params.tasks[run.task].cohort
        for folder in sorted((out / "train" / name).glob("*")):
            if not folder.name.isdigit():
                continue
            here = splits[(splits["cohort"] == cohort) & (splits["fold"] == int(folder.name))]
            if here.empty:
                continue
            record = folder / "run.json"
            run_id = read_json(record).get("mlflow_run_id") if record.exists() else None
            found.append(Exposure(name, int(folder.name), tuple(sorted(set(here["role"]))), run_id))
    return found


def _store_is_here() -> bool:
    """Whether there is a store to ask: asking for a file that does not exist would make an empty one."""
    store = import_module("chestflow.tracking.store")
    file = store.database(store.uri())
    return file is None or file.exists()


def recorded(patient_id: str, known: Iterable[Exposure] = ()) -> list[Exposure] | None:
    """Runs in MLflow that saw a patient and are not among ``known``; None where the store cannot be asked."""
    seen_before = {exposure.mlflow_run_id for exposure in known}
    try:
        if not _store_is_here():
            return []
        found = import_module("chestflow.tracking.seen").runs_that_saw(patient_id)
    except (ImportError, TrackingError, DataError):
        return None
    return [Exposure(saw.name, None, tuple(saw.roles), saw.run_id) for saw in found if saw.run_id not in seen_before]


def model_versions(exposures: Iterable[Exposure]) -> dict[str, list[str]] | None:
    """MLflow run id -> ``name vN`` of the registered versions made from it; None where no registry can be asked."""
    try:
        if not _store_is_here():
            return {}
        registry = import_module("chestflow.tracking.registry")
        return {e.mlflow_run_id: list(registry.versions_of_run(e.mlflow_run_id)) for e in exposures if e.mlflow_run_id}
    except (ImportError, TrackingError):
        return None
