"""Runs in MLflow of the two other stages that train networks: the segmenters of infection, and pretrainings.

They are for people to look at. No out names them, since DVC's run cache makes outs without a run; what must stay
findable is attached by register to the runs that use it (:mod:`chestflow.tracking.attachments`).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestflow.errors import TrackingError
from chestflow.tracking import provenance, store
from chestflow.tracking.attachments import attach_infection, attach_pretraining
from chestflow.tracking.runs import Run, experiment_name, log_images, recorded

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from chestflow.config import Params

#: Takes (what, figures, step).
Log = Callable[[str, dict[str, float], int], None]


@contextmanager
def infection_run(
    params: Params, modality: str, *, out: Path = Path("out"), checkpoints: Path = Path(".checkpoints")
) -> Iterator[Log | None]:
    """Record the stage ``infection@<modality>``: yields its log, or None where it trains nothing.

    Losses and the Dice of each round come while it trains; evidence and pictures at the end.

    Raises:
        TrackingError: the store cannot be used; before any training.
    """
    own = getattr(params.infection, modality)
    sets = sorted(own.sets)
    if not sets:
        yield None
        return
    sections = {
        "profile": params.profile, "seed": params.seed, "folds": params.folds, "threads": params.engine.threads,
        "infection": own.model_dump(mode="json"), **_lungs(params, modality),
    }  # fmt: skip
    values = {"seed": params.seed, "sets": ", ".join(sets)}
    if modality == "ct_slice":
        sets = sorted({*sets, *params.infection.ct_slice.pseudo.sets})
    stage = f"infection@{modality}"

    def begin(client: MlflowClient) -> str:
        images = provenance.infection_images(params, out, modality)
        return _begin(client, params, stage, sections, values, sets, "infection", images, out)

    with recorded(begin, checkpoints, f"infection-{modality}", _state(sections, sets, out)) as run:
        yield _log_of(run)
        _at_the_end(run, lambda: attach_infection(run.client, run.run_id, out, modality))


def _lungs(params: Params, modality: str) -> dict[str, Any]:
    """How lungs are found, where a segmenter of infection looks at them alone."""
    rules = {name: value for name, value in params.segment.model_dump(mode="json").items() if name.startswith("ct_")}
    return {"segment": rules} if modality == "ct_volume" else {}


@contextmanager
def pretraining_run(
    params: Params, name: str, *, out: Path = Path("out"), checkpoints: Path = Path(".checkpoints")
) -> Iterator[Run]:
    """Record the stage ``pretrain@name``: yields what its loop writes to; its history and picture come at the end.

    Raises:
        DataError: the split is missing, or leaves no image.
        TrackingError: the store cannot be used; before any training.
    """
    from chestflow.training.pretraining import allowed

    section = params.pretraining[name]
    settings = section.model_dump(mode="json")
    sections = {
        "profile": params.profile, "seed": params.seed, "folds": params.folds, "pretraining": settings,
        "engine": params.engine.model_dump(mode="json"),
        "recipe": params.recipes[section.recipe].model_dump(mode="json"),
    }  # fmt: skip
    sets = list(params.cohorts[section.cohort].sets)

    def begin(client: MlflowClient) -> str:
        images = provenance.with_role(allowed(params, section.cohort, out), "pretrain", out)
        return _begin(client, params, f"pretrain@{name}", sections, settings, sets, section.cohort, images, out)

    with recorded(begin, checkpoints, f"pretrain-{name}", _state(sections, sets, out)) as run:
        yield run
        _at_the_end(run, lambda: attach_pretraining(run.client, run.run_id, name, out))


def _begin(
    client: MlflowClient, params: Params, stage: str, sections: dict[str, Any], values: dict[str, Any], sets: list[str],
    cohort: str, images: pd.DataFrame, out: Path,
) -> str:  # fmt: skip
    """Create a run with its tags, parameters and images; returns its id."""
    from mlflow.entities import Param

    tags = {
        **provenance.common_tags(params, stage, sets, out),
        "cohort": cohort,
        "fold": ",".join(map(str, params.folds)),
        "params_hash": provenance.params_hash(sections),
        "mlflow.source.name": f"stages/{stage.partition('@')[0]}.py",
    }
    experiment = store.experiment(client, experiment_name(params))
    with store.clear_errors(f"starting run {stage}"):
        run_id = str(client.create_run(experiment, tags=tags, run_name=stage).info.run_id)
        client.log_batch(run_id, params=[Param(k, str(v)) for k, v in values.items()])
        log_images(client, run_id, images, tags)
    return run_id


def _at_the_end(run: Run, attach: Callable[[], None]) -> None:
    """Attach what a stage has made; a store that is gone by then is a warning, because the outs are whole."""
    if not run.run_id:  # another process of a distributed training
        return
    try:
        attach()
    except TrackingError as error:
        print(f"warning: {error}", file=sys.stderr)


def _state(sections: dict[str, Any], sets: list[str], out: Path) -> str:
    return provenance.params_hash({**sections, "data": provenance.md5_of(sets, out)})


def _log_of(run: Run) -> Log:
    """The stage's log as metrics of a run: ``ct_slice/final/training 1: round`` becomes ``…/training-1-round/loss``."""

    def log(what: str, figures: dict[str, float], step: int) -> None:
        place = re.sub(r"[^\w/]+", "-", what)
        run.metrics({f"{place}/{name}": value for name, value in figures.items() if math.isfinite(value)}, step)

    return log
