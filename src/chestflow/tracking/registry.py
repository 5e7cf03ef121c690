"""Registering: a run or an ensemble becomes a model version with alias ``candidate``, linked to what made it.

The version holds everything that an answer and a promotion need (:mod:`chestflow.serving.bundle`). The same content is
registered once: a second call finds the version that is there.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chestflow
from chestflow.errors import ConfigError
from chestflow.files import read_json, write_json
from chestflow.serving import bundle as bundles
from chestflow.tracking import evidence as read
from chestflow.tracking import provenance, store, taken
from chestflow.tracking.attachments import attach_evaluation, attach_infection, attach_studies, attach_taken
from chestflow.tracking.lookup import CANDIDATE, Version, by_number, model_name, versions, versions_of_run
from chestflow.tracking.packing import describe, parts_of, studies
from chestflow.tracking.runs import ensure_run, experiment_name, log_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from chestflow.config import Params

__all__ = ["Registered", "register", "versions_of_run"]

#: What a served model needs besides Python; the versions are those that trained it.
REQUIREMENTS = (
    "mlflow",
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "scipy",
    "scikit-learn",
    "scikit-image",
    "opencv-python-headless",
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "nibabel",
    "monai",
    "safetensors",
    "imagehash",
    "pillow",
    "matplotlib",
    "threadpoolctl",
    "pydantic",
    "pyyaml",
)


@dataclass(frozen=True)
class Registered:
    """A version, and whether this call made it."""

    version: Version
    created: bool


def register(params: Params, name: str, out: Path = Path("out")) -> Registered:
    """Make a model version of a run or an ensemble, or find the one that is already there; prints one line.

    Raises:
        ConfigError: there is no such run or ensemble.
        DataError: a stage's file is missing.
        TrackingError: the store cannot be used.
    """
    if name not in params.runs and name not in params.ensembles:
        known = ", ".join([*params.runs, *params.ensembles])
        raise ConfigError(f"{name} is neither a run nor an ensemble; params.yaml has {known}")
    client = store.connect()
    bundle = describe(params, name, out)
    found = read_json(out / "evaluate" / f"{name}.json")
    run_ids = {
        (run, fold): ensure_run(params, run, fold, out, client)
        for run, _ in parts_of(params, name)
        for fold in params.folds
    }
    shown_in = _evaluation_run(client, params, name, list(run_ids.values()), out)
    _attach(client, params, name, found, run_ids, shown_in, out)
    if bundle.reads_infection:
        attach_infection(client, shown_in, out, bundle.modality)
    with tempfile.TemporaryDirectory(prefix="chestflow-") as folder:
        place = Path(folder) / "bundle"
        bundles.write(
            bundle, place, out, lungs=bundle.modality == "cxr", calibration=tuple(studies(params, name, out).values())
        )
        # the same weights in another run are another version: the link to the run is part of what is registered
        write_json(place / "runs.json", {f"{run}-{fold}": run_id for (run, fold), run_id in run_ids.items()})
        content = bundles.digest(place)
        for one in versions(client, model_name(name)):
            if one.tags.get("content") == content:
                _point(client, one)
                print(f"{one.label} already holds {name}")
                return Registered(replace(one, aliases=(*one.aliases, CANDIDATE)), False)
        made = _log(client, params, name, bundle, found, place, content, run_ids, shown_in, out)
    print(f"registered {made.label}, alias {CANDIDATE}")
    return Registered(made, True)


def _evaluation_run(client: MlflowClient, params: Params, name: str, run_ids: list[str], out: Path) -> str:
    """The MLflow run that shows an evaluation: the training itself where there is one, else a summary of them."""
    if len(run_ids) == 1:
        return run_ids[0]
    joined = ",".join(run_ids)
    experiment = store.experiment(client, experiment_name(params))
    with store.clear_errors("starting a summary run"):
        # MLflow compares whole tags up to 5000 characters; ids are 32
        earlier = client.search_runs([experiment], f"tags.run_ids = '{joined}' and tags.run = '{name}'", max_results=1)
        if earlier:
            return str(earlier[0].info.run_id)
        first = parts_of(params, name)[0][0]
        tags = {
            **provenance.training_tags(params, first, params.folds[0], out),
            "stage": os.environ.get("DVC_STAGE") or f"register@{name}",
            "run": name,
            "fold": ",".join(map(str, params.folds)),
            "run_ids": joined,
            "mlflow.source.name": "stages/register.py",
        }
        run_id = str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)
        client.set_terminated(run_id, "FINISHED")
    return run_id


def _attach(
    client: MlflowClient,
    params: Params,
    name: str,
    found: dict[str, Any],
    run_ids: dict[tuple[str, int], str],
    shown_in: str,
    out: Path,
) -> None:
    """Put test figures beside the curves, so that runs can be compared by them."""
    attach_evaluation(client, shown_in, found, name, out)
    attach_studies(client, shown_in, studies(params, name, out))
    for (run, fold), run_id in run_ids.items():
        if run == name and run_id != shown_in:
            log_metrics(client, run_id, read.fold_metrics(found, fold))
        if run == name:
            attach_taken(client, run_id, params, run, fold, out)


def requirements() -> list[str]:
    """Pinned to what is installed here; local builds (``+cpu``) under their public version."""
    pinned = []
    for name in REQUIREMENTS:
        try:
            pinned.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return pinned


def _log(
    client: MlflowClient,
    params: Params,
    name: str,
    bundle: bundles.Bundle,
    found: dict[str, Any],
    place: Path,
    content: str,
    run_ids: dict[tuple[str, int], str],
    shown_in: str,
    out: Path,
) -> Version:
    """Log the bundle as a model of the evaluation's run, register it, tag it and point the alias at it."""
    import mlflow

    from chestflow.serving import pyfunc_model
    from chestflow.serving.abstention import false_abstention
    from chestflow.tracking.examples import example
    from chestflow.tracking.model_card import card

    refusals = false_abstention(bundle, place, out, device=params.engine.device)
    write_json(place / "abstention.json", refusals)
    with store.clear_errors(f"registering {name}"):
        made_by = client.get_run(next(iter(run_ids.values()))).data.tags
        tags = {
            "run": name,
            "run_ids": ",".join(run_ids.values()),
            "task": bundle.task,
            "profile": bundle.profile,
            "phantom": "yes" if bundle.phantom else "no",
            "data_md5": made_by.get("data_md5", "unknown"),
            "git_commit": made_by.get("git_commit", "unknown"),
            "members": params.register_.members,
            "folds": ",".join(map(str, params.folds)),
            "licences": "; ".join(bundle.licences) or "unstated",
            "commercial_use": bundle.commercial_use,
            "content": content,
            "seal": bundles.seal(place),
        }
        folds = sorted({member.fold for member in bundle.members})
        uses = taken.card_lines(params, [run for run, _ in parts_of(params, name)], folds, out)
        if bundle.reads_infection:
            uses["infection where no mask is given"] = taken.infection_row(out, bundle.modality) or "unknown"
        text = card(bundle, found, refusals, tags, uses)
        (place / "model_card.md").write_text(text)
        client.log_text(shown_in, text, "model_card.md")
        client.log_dict(shown_in, refusals, "abstention.json")
        before = client.get_run(shown_in).info
        with mlflow.start_run(run_id=shown_in):
            logged = mlflow.pyfunc.log_model(
                name=name,
                python_model=pyfunc_model.__file__,
                artifacts={"bundle": str(place)},
                code_paths=[str(Path(chestflow.__file__).parent)],
                signature=pyfunc_model.signature(),
                input_example=example(bundle.modality),
                pip_requirements=requirements(),
                model_config={"model": f"{model_name(name)} {content[:12]}"},
                tags={"run": name, "content": content},
            )
        # logging reopens the run: without its own end it would seem to have lasted until now
        client.set_terminated(shown_in, before.status, before.end_time)
        registered = mlflow.register_model(logged.model_uri, model_name(name), tags=tags)
        client.update_model_version(registered.name, registered.version, description=text)
        client.update_registered_model(registered.name, _description(bundle))
        made = by_number(client, registered.name, int(registered.version))
    _point(client, made)
    return by_number(client, made.name, made.number)


def _description(bundle: bundles.Bundle) -> str:
    notice = f"{bundle.notice}. " if bundle.notice else ""
    return f"{notice}{bundle.task} on {bundle.modality}. Promote with `chestflow promote`, which moves the aliases."


def _point(client: MlflowClient, made: Version) -> None:
    with store.clear_errors("setting the alias"):
        client.set_registered_model_alias(made.name, CANDIDATE, str(made.number))
