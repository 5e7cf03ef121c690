"""Optuna studies that survive an interruption, top up to their target, and repeat themselves from a seed.

Each trial's sampler is seeded by the study's seed and the number of trials completed so far. So a study that was killed
and started again draws what it would have drawn, and a finished one adds nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from chestflow.errors import ChestflowError, ConfigError, DataError
from chestflow.files import plain

Values = dict[str, float]
#: (step, objective so far): ends the trial where the study's pruner gives it up
Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Axis:
    """One searched number.

    Attributes:
        low: lowest value.
        high: highest value.
        step: grid, or None for any value between.
        log: whether it is searched on the logarithm.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Outcome:
    """A finished study: the best values, their objective (lower is better), and every finished trial in order.

    A trial that was given up holds its last report, is marked ``pruned``, and is never the best.
    """

    best: Values
    objective: float
    trials: list[dict[str, Any]]


class _FileLock:
    """A lock that the system drops when its holder is killed, unlike a lock file that stays behind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: TextIO | None = None

    def acquire(self) -> bool:
        self._stream = open(self._path, "a")  # noqa: SIM115 - held until release
        fcntl.flock(self._stream, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def study_key(about: Mapping[str, Any]) -> str:
    """A name for a study from everything that its trials depend on; never the number of trials, so it can grow."""
    return hashlib.sha256(json.dumps(plain(dict(about)), sort_keys=True).encode()).hexdigest()[:16]


def _drop_torn_line(journal: Path) -> None:
    """Cut off the last line of a journal when a kill left it half-written; anything appended to it would be lost."""
    if not journal.exists():
        return
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        with open(journal, "r+b") as stream:
            stream.truncate(content.rfind(b"\n") + 1)


def _storage(key: str, checkpoints: Path, url: str | None) -> Any:
    import optuna

    if url is not None:
        try:
            return optuna.storages.get_storage(url)
        except Exception as error:  # SQLAlchemy's and the drivers' errors have no common base
            problem = " ".join(str(error).split())[:200]
            raise ConfigError(f"tune.storage cannot be opened ({problem}): check the URL, or set it to null") from None
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    journal = checkpoints / "optuna" / f"{key}.journal"
    journal.parent.mkdir(parents=True, exist_ok=True)
    lock = _FileLock(journal.with_suffix(".lock"))
    _drop_torn_line(journal)
    try:
        return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))  # type: ignore[arg-type,unused-ignore]
    except (ValueError, KeyError, TypeError, json.JSONDecodeError):
        raise DataError(f"the study journal {journal} is damaged: delete it and start again") from None


def _reporter(trial: Any) -> Report:
    import optuna

    def report(step: int, objective: float) -> None:
        trial.report(objective, step)
        if trial.should_prune():
            raise optuna.TrialPruned

    return report


def run_study(
    objective: Callable[..., float],
    space: Mapping[str, Axis],
    *,
    trials: int,
    seed: int,
    about: Mapping[str, Any],
    checkpoints: Path,
    storage: str | None = None,
    first: Sequence[Values] = (),
    pruner: Any = None,
) -> Outcome:
    """Minimise ``objective`` with TPE until ``trials`` trials are complete, counting those of earlier starts.

    Args:
        objective: values -> number, lower is better; the same values must give the same number. With a ``pruner`` it is
            called with a :data:`Report` too.
        space: the searched numbers.
        trials: how many completed trials there shall be.
        seed: sequential runs with one seed give the same trials.
        about: everything that the objective depends on; another ``about`` is another study.
        checkpoints: journals lie in ``optuna/`` under it.
        storage: an Optuna storage URL instead of the journal, for many workers.
        first: values tried before the sampler chooses, such as the paper's; clipped into the space.
        pruner: one of Optuna's, which gives up trials by their reports; those count as finished. At least one trial
            must be left to run to its end.

    Raises:
        ConfigError: the storage URL cannot be used.
        DataError: the journal is damaged.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    key = study_key({"about": about, "space": {k: vars(a) for k, a in space.items()}, "seed": seed, "first": first})
    distributions = {k: optuna.distributions.FloatDistribution(a.low, a.high, a.log, a.step) for k, a in space.items()}
    finished, pruned = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    try:
        study = optuna.create_study(
            storage=_storage(key, checkpoints, storage),
            study_name=key,
            direction="minimize",
            load_if_exists=True,
            pruner=pruner,
        )
        # A trial that was running when its process was killed never ends; it must not be taken for a result.
        if storage is None:
            for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        while (done := len(study.get_trials(deepcopy=False, states=(finished, pruned)))) < trials:
            study.sampler = optuna.samplers.TPESampler(seed=seed + done)
            if done < len(first):
                study.enqueue_trial({k: min(max(first[done][k], a.low), a.high) for k, a in space.items()})
            trial = study.ask(distributions)
            told = () if pruner is None else (_reporter(trial),)
            try:
                study.tell(trial, float(objective(dict(trial.params), *told)))
            except optuna.TrialPruned:
                study.tell(trial, state=pruned)
        rows = study.get_trials(deepcopy=False, states=(finished, pruned))
    except (ChestflowError, OSError):
        raise
    except (KeyError, json.JSONDecodeError) as error:
        raise DataError(f"the study journal {key} under {checkpoints}/optuna is damaged ({error}): delete it") from None
    table: list[dict[str, Any]] = [
        {"number": i, "values": {k: t.params[k] for k in space}, "objective": t.value} for i, t in enumerate(rows)
    ]
    if pruner is not None:
        for row, trial in zip(table, rows, strict=True):
            row |= {"pruned": trial.state == pruned, "reports": len(trial.intermediate_values)}
    best = min((row for row in table if not row.get("pruned")), key=lambda row: row["objective"])
    return Outcome(dict(best["values"]), float(best["objective"]), table)


def history_plot(trials: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw each trial's objective and the best so far, in order, as PNG; one line for each study in the table."""
    from chestflow.evaluation.figures import ACCENT, INK, OTHER, canvas

    names = sorted({str(t.get("study", "")) for t in trials})
    with canvas(path, title, size=(5.2, 3.6)) as axes:
        for name, colour in zip(names, (ACCENT, OTHER, INK), strict=False):
            values = [t["objective"] for t in trials if str(t.get("study", "")) == name]
            best = [min(values[: i + 1]) for i in range(len(values))]
            axes.plot(range(len(values)), values, ".", color=colour, ms=4, alpha=0.5)
            axes.step(range(len(values)), best, color=colour, where="post", label=name or "best so far")
        axes.set(xlabel="trial", ylabel="objective (lower is better)")
        axes.legend(frameon=False, fontsize=8)
