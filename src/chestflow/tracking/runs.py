"""Training runs in MLflow: one a stage train@run-fold, resumed with it, and found again from its files.

A run's id is kept twice. While training goes on, ``.checkpoints/mlflow/<run>-<fold>.json`` lets the next attempt resume
the same MLflow run. Once it is done, the stage's own ``run.json`` is the link, which survives DVC's run cache, a pull
into a fresh clone, and temporary experiment folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestflow.errors import DataError, TrackingError
from chestflow.files import read_json, write_json
from chestflow.tracking import provenance, store, taken

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from chestflow.config import Params

IMAGES = "data/images.csv"


class Run:
    """One training's record; also the log that the engine writes to."""

    def __init__(self, client: MlflowClient, run_id: str, *, resumed: bool = False) -> None:
        self.client, self.run_id, self.resumed = client, run_id, resumed
        self._seen: dict[str, int] = {}
        self._broken = False

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record metrics of one step; on a resumed run only those that are not there yet.

        A store that fails in the middle costs the curve and not the training: it is said once, and the figures are in
        history.csv.
        """
        if self._broken:
            return
        try:
            log_metrics(self.client, self.run_id, {k: v for k, v in values.items() if self._new(k, step)}, step)
        except TrackingError as error:
            self._broken = True
            print(f"warning: {error}; training goes on, its curve stays in history.csv", file=sys.stderr)

    def _new(self, name: str, step: int) -> bool:
        if not self.resumed:
            return True
        if name not in self._seen:
            with store.clear_errors("reading metrics"):
                history = self.client.get_metric_history(self.run_id, name)
            self._seen[name] = max((point.step for point in history), default=-1)
        return step > self._seen[name]


class _Silent(Run):
    """What the other processes of a distributed training get: the first one records for all."""

    def __init__(self) -> None:
        self.run_id = ""

    def metrics(self, values: dict[str, float], step: int) -> None:
        return


def log_metrics(client: MlflowClient, run_id: str, values: dict[str, Any], step: int = 0) -> None:
    """Write several metrics at once; what is unknown (None) is left out."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    points = [Metric(name, float(value), now, step) for name, value in values.items() if value is not None]
    with store.clear_errors("writing metrics"):
        for start in range(0, len(points), 500):
            client.log_batch(run_id, metrics=points[start : start + 500])


def experiment_name(params: Params) -> str:
    """One experiment a profile."""
    return f"chestflow-{params.profile}"


def _exists(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        with store.clear_errors("looking up a run"):
            raise


def _begin(client: MlflowClient, params: Params, run: str, fold: int, out: Path, **more: str) -> str:
    """Create a run with its tags, parameters and dataset; returns its id."""
    from mlflow.entities import Param

    tags = {**provenance.training_tags(params, run, fold, out), **more}
    experiment = store.experiment(client, experiment_name(params))
    with store.clear_errors(f"starting run {run}-fold{fold}"):
        run_id = str(client.create_run(experiment, tags=tags, run_name=f"{run}-fold{fold}").info.run_id)
        given = provenance.training_parameters(params, run, fold)
        client.log_batch(run_id, params=[Param(k, v) for k, v in given.items()])
        log_images(client, run_id, provenance.images_of(params, run, fold, out), tags)
    return run_id


def log_images(client: MlflowClient, run_id: str, images: pd.DataFrame, tags: dict[str, str]) -> None:
    """Record which images take which role: as MLflow's dataset input, and as a table for withdrawals.

    Args:
        client: of the store.
        run_id: whose.
        images: image_id, patient_id, source and role.
        tags: the run's; ``cohort``, ``fold`` and ``data_md5`` name the dataset.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    text = images.to_csv(index=False, lineterminator="\n")
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    counts = {str(role): int(count) for role, count in images["role"].value_counts().sort_index().items()}
    columns = [{"name": str(name), "type": "string", "required": True} for name in images.columns]
    dataset = Dataset(
        name=f"{tags['cohort']}-fold{tags['fold']}",
        digest=digest,
        source_type="dvc",
        source=json.dumps({"uri": f"dvc:{tags['data_md5']}"}),
        schema=json.dumps({"mlflow_colspec": columns}),
        profile=json.dumps({"num_rows": len(images), "roles": counts}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    client.log_text(run_id, text, IMAGES)
    client.set_tag(run_id, "images_digest", digest)


@contextmanager
def training_run(
    params: Params, run: str, fold: int, *, out: Path = Path("out"), checkpoints: Path = Path(".checkpoints")
) -> Iterator[Run]:
    """Record one training: FINISHED at the block's end, FAILED on an exception, KILLED on SIGTERM or Ctrl-C.

    An attempt that was cut off is resumed under its own run, not doubled; one whose parameters, data or taken over
    weights have changed since is marked KILLED and a new run begins. The training itself writes the run's id to its
    run.json.

    Raises:
        TrackingError: the store cannot be used; before any training.
    """
    state = provenance.params_hash(
        {
            **provenance.training_sections(params, run, fold),
            "data": provenance.data_md5(params, run, out),
            "taken": taken.tags(params, run, fold, out),
        }
    )
    with recorded(lambda client: _begin(client, params, run, fold, out), checkpoints, f"{run}-{fold}", state) as record:
        yield record


@contextmanager
def recorded(begin: Callable[[MlflowClient], str], checkpoints: Path, name: str, state: str) -> Iterator[Run]:
    """Record what goes on in the block as one run, which an interrupted earlier attempt may have begun.

    Args:
        begin: creates a run and returns its id.
        checkpoints: ``mlflow/<name>.json`` under it names the run until it is finished.
        name: of the stage's item.
        state: a hash of what determines the result; an attempt with another one is not resumed.

    Raises:
        TrackingError: the store cannot be used.
    """
    from chestflow.training.termination import stop_on_sigterm

    if int(os.environ.get("RANK", "0")) != 0:
        yield _Silent()
        return
    client = store.connect()
    marker = checkpoints / "mlflow" / f"{name}.json"
    earlier: dict[str, str] = read_json(marker) if marker.exists() else {}
    resumed = False
    if earlier and _exists(client, earlier["run_id"]):
        resumed = earlier["state"] == state
        if not resumed:
            _end(client, earlier["run_id"], "KILLED")
    run_id = str(earlier["run_id"]) if resumed else begin(client)
    if resumed:
        with store.clear_errors("resuming a run"):
            client.update_run(run_id, status="RUNNING")
            client.set_tag(run_id, "resumed", "yes")
    write_json(marker, {"run_id": run_id, "state": state})
    try:
        with stop_on_sigterm():
            yield Run(client, run_id, resumed=resumed)
    except (KeyboardInterrupt, SystemExit):
        _end(client, run_id, "KILLED")
        raise
    except BaseException:
        _end(client, run_id, "FAILED")
        raise
    _end(client, run_id, "FINISHED")
    marker.unlink(missing_ok=True)


def _end(client: MlflowClient, run_id: str, status: str) -> None:
    """Close a run; a store that is gone by then is a warning, because the training itself is whole."""
    try:
        with store.clear_errors("closing a run"):
            client.set_terminated(run_id, status=status)
    except TrackingError as error:
        print(f"warning: {error}", file=sys.stderr)


def ensure_run(params: Params, run: str, fold: int, out: Path = Path("out"), client: MlflowClient | None = None) -> str:
    """The id of the MLflow run that made a stage's outs; where the store lacks it, re-created and marked as restored.

    Raises:
        DataError: the run was not trained.
        TrackingError: the store cannot be used.
    """
    client = client or store.connect()
    folder = out / "train" / run / str(fold)
    original = read_json(folder / "run.json").get("mlflow_run_id")
    if original and _exists(client, original):
        return str(original)
    origin = original or "unrecorded"
    experiment = store.experiment(client, experiment_name(params))
    with store.clear_errors("looking up a restored run"):
        query = f"tags.restored_from = '{origin}' and tags.run = '{run}' and tags.fold = '{fold}'"
        found = client.search_runs([experiment], query, max_results=1)
    if found:
        return str(found[0].info.run_id)
    run_id = _begin(client, params, run, fold, out, restored="yes", restored_from=origin)
    for step, values in _history(folder / "history.csv"):
        log_metrics(client, run_id, values, step)
    _end(client, run_id, "FINISHED")
    return run_id


def _history(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps and metrics as the engine logged them."""
    import pandas as pd

    from chestflow.training import history

    if not path.exists():
        raise DataError(f"{path} is missing: run `dvc repro` (or `make repro`) to make it")
    for step, row in enumerate(history.read(path).to_dict("records"), start=1):
        named = {str(k): v for k, v in row.items()}
        yield step, {k: v for k, v in history.metrics(named).items() if not pd.isna(v)}
