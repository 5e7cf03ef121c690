"""Stage tune_tau: the heat map's threshold of a multi_knowledge run (paper 003, eq. 2), before the run is trained.

Each trial trains the heat-map branch alone, for a few epochs, on the regions that a tau cuts out of the frozen global
run's maps; it is measured on the tune role after each epoch, and given up where it falls behind. All trials start from
the same weights and see the same batches, so that they differ by tau alone. The paper's 0.75 is always the first trial
and stays in use unless the tuned value is better beyond doubt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.config_runs import PAPER_TAU
from chestflow.errors import ConfigError
from chestflow.evaluation.calibration import probabilities
from chestflow.evaluation.intervals import cluster_weights
from chestflow.evaluation.metrics import decide, measure
from chestflow.files import atomic_path, write_json
from chestflow.training import checkpoints as states
from chestflow.training import tables, uses
from chestflow.training.identity import checkpoint_folder
from chestflow.tuning import bootstrap
from chestflow.tuning.studies import Axis, Report, Values, run_study

STEP = 0.01


@dataclass(frozen=True)
class Trained:
    """A trial that ran to its end: the criterion on the tune role after each epoch, and its best epoch's logits."""

    values: NDArray[np.float64]
    logits: NDArray[np.float32]


class Trials:
    """Trains heat-map branches for values of tau, and keeps what became of each under ``.checkpoints/tau``.

    Args:
        params: of params.yaml.
        run: of multi_knowledge, with a global run.
        fold: of its task's cohort.
        out: the stages' outs.
        checkpoints: root of what only an interrupted stage needs.

    Raises:
        ConfigError: the run has no tau to tune.
        DataError: an input is missing.
    """

    def __init__(self, params: Any, run: str, fold: int, out: Path, checkpoints: Path) -> None:
        from chestflow.data.packs import Pack
        from chestflow.training.engine import Data

        section = params.runs[run]
        if not uses.tau_is_tuned(params, run):
            raise ConfigError(f"runs.{run}: nothing to tune; it takes config.tau: null and uses: {{global: RUN}}")
        self.settings, self.run, self.fold, self.out = params.tau, run, fold, out
        short = {
            **section.config, "answers": "heat", "tau": PAPER_TAU, "epochs": params.tau.epochs,
            "monitor": params.tau.criterion, "patience": None,
        }  # fmt: skip
        changed = SimpleNamespace(
            method=section.method, task=section.task, recipe=section.recipe, config=short, uses=section.uses,
            seed=section.seed,
        )  # fmt: skip
        #: the parameters as a run of the heat-map branch alone would see them
        self.params = SimpleNamespace(
            profile=params.profile, seed=params.seed, engine=params.engine, tasks=params.tasks,
            runs={**params.runs, run: changed},
        )  # fmt: skip
        self.seed = params.seed + section.seed + fold
        task = params.tasks[section.task]
        self.classes = tuple(task.classes)
        pack = Pack.open(out / "packs" / section.recipe)
        roles = tables.role_tables(task, section.task, fold, out)
        train, tune = (roles[r].assign(row=pack.rows_of(roles[r]["image_id"].tolist())) for r in ("train", "tune"))
        self.data, self.modality = Data(pack, train, tune), str(pack.recipe["modality"])
        key = checkpoint_folder(self.params, run, fold, out, checkpoints).relative_to(checkpoints).parts[0]
        settings = {name: getattr(params.tau, name) for name in ("criterion", "pruning", "prune_from", "prune_after")}
        self.about = {"run": run, "fold": fold, "training": key, **settings}
        self.folder = checkpoints / "tau" / key  # what a value comes to depends on no setting of the search

    @property
    def target(self) -> NDArray[np.int64]:
        """Classes of the tune role's images."""
        return self.data.tune["target"].to_numpy()

    @property
    def patients(self) -> NDArray:
        """Their patients; the image itself where unknown."""
        tune: pd.DataFrame = self.data.tune
        return tune["patient_id"].fillna(tune["image_id"]).to_numpy()

    def result(self, tau: float, report: Report | None = None) -> Trained:
        """Train with this tau, or remember it; ``report`` hears of each epoch and may end the trial."""
        from chestflow.training.termination import stop_on_sigterm

        kept = self.folder / f"{tau:.4f}.npz"
        if not kept.exists():
            with stop_on_sigterm():
                found = self._train(tau, report)
            with atomic_path(kept) as temporary:
                np.savez(temporary, values=found.values, logits=found.logits)
            return found
        with np.load(kept, allow_pickle=False) as saved:
            found = Trained(saved["values"], saved["logits"])
        for step, value in enumerate(found.values, start=1):
            if report is not None:
                report(step, -float(value))
        return found

    def _train(self, tau: float, report: Report | None) -> Trained:
        import torch

        from chestflow.methods import registry
        from chestflow.training.engine import fit
        from chestflow.training.hardware import make_reproducible, seed_of
        from chestflow.training.inference import infer

        section = self.params.runs[self.run]
        method = registry.get(section.method)
        config = registry.configure(method, {**section.config, "tau": tau}, where=f"runs.{self.run}.config")
        pack = self.data.pack
        taken = uses.resolved(self.params, self.run, self.fold, self.out)
        spec = registry.InputSpec(self.modality, tuple(pack.data.shape[1:]), self.classes, taken)
        make_reproducible(self.params.engine.threads)
        torch.manual_seed(seed_of(self.seed, "initial weights"))
        network = method.build(config, spec)
        uses.load(network, self.params, self.run, self.fold, self.out)
        place = self.folder / "trial" / str(self.fold)
        states.clear(place)  # a trial is short: it begins anew, so that what it reports is the same
        heard = Heard(self.settings.criterion, report)
        phases = method.phases(config)
        try:
            done = fit(network, phases, self.data, self.params.engine, seed=self.seed, folder=place, log=heard)
        finally:
            states.clear(place)
        rows = self.data.tune["row"].to_numpy()
        size = max(1, phases[-1].batch_size // phases[-1].accumulate)
        found = infer(done.network, pack, rows, device=done.device, batch_size=size, amp=done.amp)
        return Trained(np.array(heard.values), found.logits)


class Heard:
    """A training's log: keeps the criterion after each epoch and passes it on."""

    def __init__(self, criterion: str, report: Report | None) -> None:
        self.criterion, self.report = criterion, report
        self.values: list[float] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        """An epoch is over."""
        self.values.append(values[f"tune/{self.criterion}"])
        if self.report is not None:
            self.report(step, -self.values[-1])


def score(trained: Trained, y: NDArray, criterion: str, weights: NDArray | None = None) -> NDArray[np.float64]:
    """The criterion of a trial's best epoch on the tune role, for each weighting of its images."""
    p = probabilities(trained.logits)
    return measure(y, p, decide(p), weights)[criterion]


def tune_tau(run: str, fold: int, params: Any, out: Path, checkpoints: Path) -> None:
    """Write the value in use alone, ``out/tau/<run>/<fold>.json``, and the search, ``out/tune/tau/<run>/<fold>.json``.

    Keys of the search: ``tau`` (the value in use) and ``use`` (paper or tuned); ``paper`` and ``tuned``, each a ``tau``
    with its ``value`` of the ``criterion`` on the tune role; ``curve``, the values tried, rising, each with its value,
    its epochs and whether it was given up; ``gain`` of the tuned over the paper's (out of bag), ``spread`` of the
    optimum over resamples; ``trials`` in order.

    Raises:
        ConfigError: the run has no tau to tune.
        DataError: an input is missing or does not fit.
        TrainingError: a loss is not finite.
        Terminated: SIGTERM came; the trials that are finished are kept.
    """
    import optuna

    settings = params.tau
    trials = Trials(params, run, fold, out, checkpoints)
    criterion, y = settings.criterion, trials.target

    def objective(values: Values, report: Report) -> float:
        return -float(score(trials.result(round(values["tau"], 4), report), y, criterion)[0])

    startup = settings.prune_from if settings.pruning else settings.trials
    study = run_study(
        objective,
        {"tau": Axis(settings.range[0], settings.range[1], STEP)},
        trials=settings.trials,
        seed=trials.seed,
        about=trials.about,
        checkpoints=checkpoints,
        first=[{"tau": PAPER_TAU}],
        pruner=optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=settings.prune_after),
    )
    tried = [{**row, "values": {"tau": round(row["values"]["tau"], 4)}} for row in study.trials]
    curve: dict[float, dict[str, Any]] = {}
    for row in tried:
        tau = row["values"]["tau"]
        if curve.get(tau, {"pruned": True})["pruned"]:  # a value drawn again may get further than the first time
            curve[tau] = {"tau": tau, "value": -row["objective"], "epochs": row["reports"], "pruned": row["pruned"]}
    ended = sorted(tau for tau, point in curve.items() if not point["pruned"])
    answers = {tau: trials.result(tau) for tau in ended}
    tuned = round(study.best["tau"], 4)
    weights = cluster_weights(trials.patients, settings.bootstrap, np.random.default_rng(trials.seed))
    left_out = bootstrap.out_of_bag(weights)
    within = np.stack([score(answers[tau], y, criterion, weights) for tau in ended])  # (trials, resamples)
    outside = np.stack([score(answers[tau], y, criterion, left_out) for tau in ended])
    best = np.argmax(np.nan_to_num(within, nan=-np.inf), axis=0)
    gain = bootstrap.gain(outside[best, np.arange(len(weights))] - outside[ended.index(PAPER_TAU)], len(y))
    use = bootstrap.chosen(gain) if tuned != PAPER_TAU else "paper"
    used = tuned if use == "tuned" else PAPER_TAU
    write_json(uses.tau_file(run, fold, out), {"tau": used})
    write_json(
        uses.tau_evidence(run, fold, out),
        {
            "run": run, "fold": fold, "images": len(y), "criterion": criterion, "epochs": settings.epochs,
            "range": settings.range, "use": use, "tau": used,
            "paper": {"tau": PAPER_TAU, "value": curve[PAPER_TAU]["value"]},
            "tuned": {"tau": tuned, "value": curve[tuned]["value"]},
            "curve": [curve[tau] for tau in sorted(curve)], "gain": gain.json(),
            "spread": bootstrap.spread(np.array(ended)[best]),
            "trials": tried,
        },
    )  # fmt: skip
