"""From a run's section of params.yaml to its trained network and predictions; what the stage train@run-fold calls.

Needs neither the pipeline's tools nor the schema: any object with params.yaml's sections as attributes will do.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestflow.errors import ConfigError
from chestflow.methods import registry
from chestflow.training import tables, uses
from chestflow.training.checkpoints import clear
from chestflow.training.identity import checkpoint_folder
from chestflow.training.lungless import without_lungless
from chestflow.training.progress import say
from chestflow.training.termination import stop_on_sigterm

if TYPE_CHECKING:
    from chestflow.training.engine import Log


def train_run(
    params: Any,
    run: str,
    fold: int,
    out: Path = Path("out"),
    checkpoints: Path = Path(".checkpoints"),
    log: Log | None = None,
) -> dict[str, Any]:
    """Fit a run's phases on one fold, write the network under ``out/train`` and predictions under ``out/predictions``.

    Killed at any moment, the same call goes on from its last checkpoint and writes the same bytes. Under torchrun
    every process calls this; the first one writes.

    Args:
        params: of params.yaml: profile, seed, engine, tasks, recipes, runs.
        run: the run's name; its method, task and recipe say the rest.
        fold: of the task's cohort.
        out: the stages' outs.
        checkpoints: root of what only an interrupted run needs.
        log: gets the metrics of every epoch; its ``run_id``, if it has one, goes to run.json.

    Returns:
        What model.json holds.

    Raises:
        ConfigError: the method's config is wrong or does not fit the recipe or task.
        DataError: an input is missing, or a role is empty or of one class.
        TrainingError: the loss or a gradient is not finite.
        Terminated: SIGTERM came; nothing is half-written.
    """
    with stop_on_sigterm():
        return _train(params, run, fold, out, checkpoint_folder(params, run, fold, out, checkpoints), log)


def _train(params: Any, run: str, fold: int, out: Path, folder: Path, log: Log | None) -> dict[str, Any]:
    import torch

    from chestflow.data.packs import Pack
    from chestflow.training import distributed, engine
    from chestflow.training.hardware import make_reproducible, seed_of
    from chestflow.training.results import write_results

    section = params.runs[run]
    task = params.tasks[section.task]
    method = registry.get(section.method)
    config = registry.configure(method, section.config, where=f"runs.{run}.config")
    pack = Pack.open(out / "packs" / section.recipe)
    roles = {
        name: table.assign(row=pack.rows_of(table["image_id"].tolist()))
        for name, table in tables.role_tables(task, section.task, fold, out).items()
    }
    roles, left_out = without_lungless(roles, pack)
    for role, count in left_out.items():
        if count:
            say(f"runs.{run}, fold {fold}: {count} volumes leave role {role}, no lungs were found in them")
            tables.require(roles[role], role, section.task, fold, list(task.classes))
    taken = uses.resolved(params, run, fold, out)
    spec = registry.InputSpec(pack.recipe["modality"], tuple(pack.data.shape[1:]), tuple(task.classes), taken)
    if spec.modality not in method.modalities:
        wanted = " or ".join(method.modalities)
        raise ConfigError(
            f"runs.{run}: method {method.name} reads {wanted}, recipe {section.recipe} is {spec.modality}"
        )

    seed = params.seed + section.seed + fold
    make_reproducible(params.engine.threads)
    torch.manual_seed(seed_of(seed, "initial weights"))
    network = method.build(config, spec)
    uses.load(network, params, run, fold, out)
    data = engine.Data(pack, roles["train"], roles["tune"])
    phases = method.phases(config)
    result = engine.fit(network, phases, data, params.engine, seed=seed, folder=folder, log=log)
    description = {
        "run": run,
        "fold": fold,
        "profile": params.profile,
        "method": method.name,
        "config": registry.completed(method, section.config),
        "input": asdict(spec),
        "task": {"name": section.task, "cohort": task.cohort, "classes": dict(task.classes)},
        "recipe": {"name": section.recipe, **pack.recipe},
        "left_out_without_lungs": left_out,
        "seed": seed,
        "best": result.best,
        "dropped": [name for phase in phases for name in phase.drops],
        "parameters": sum(p.numel() for p in network.parameters()),
        "engine": {
            "device": result.device.type,
            "amp": result.amp,
            "threads": params.engine.threads,
            "processes": result.world.size,
            "torch": version("torch"),
        },
    }
    batch_size = max(1, phases[-1].batch_size // phases[-1].accumulate)
    write_results(result, pack, roles, description, out, batch_size, log)
    if result.world.rank == 0:
        clear(folder)
    distributed.leave()
    return description
