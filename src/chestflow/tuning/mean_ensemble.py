"""Stages tune_w and ensemble for a mean of runs: P = sum over members of w_i P_i, the weights summing to 1.

The stated weights, equal unless params.yaml says otherwise, stay in use unless searched ones are better on patients
left out of the search (:mod:`chestflow.tuning.bootstrap`). The search is for the least log loss on the tune role, which
is convex in the weights, so that the fixed point of expectation maximisation for mixture proportions is the exact
optimum and checks the study.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.errors import DataError
from chestflow.evaluation.cases import columns
from chestflow.evaluation.intervals import cluster_weights
from chestflow.evaluation.localisation import upsample
from chestflow.evaluation.metrics import decide, measure
from chestflow.files import ATTENTION_FILES, atomic_path, read_json, read_parquet, write_json, write_parquet
from chestflow.tuning import bootstrap
from chestflow.tuning.calibration import read_tune
from chestflow.tuning.ensemble import EPS
from chestflow.tuning.studies import Axis, run_study

#: Steps of :func:`best_shares`, and the change below which it ends. Resamples, of which only the spread is shown, end
#: earlier.
STEPS, ENOUGH, STEPS_OF_A_RESAMPLE = 4000, 1e-9, 200
#: Draws are kept above 0, so that they can be normalised.
LEAST_DRAW = 1e-3


def best_shares(p: NDArray, weights: NDArray | None = None, *, steps: int = STEPS) -> NDArray[np.float64]:
    """The weights (M,) of the least mean -log sum_i w_i p_i, by expectation maximisation from equal ones.

    Args:
        p: (N, M) each member's probability of the true class.
        weights: (N,) of the images; None counts all alike.
        steps: at most.
    """
    p = np.clip(p, EPS, 1.0)
    image = np.ones(len(p)) if weights is None else weights
    image = image / image.sum()
    shares = np.full(p.shape[1], 1 / p.shape[1])
    for _ in range(steps):
        after = shares * ((image / (p @ shares)) @ p)
        done = float(np.abs(after - shares).max()) < ENOUGH
        shares = after / after.sum()
        if done:
            break
    found: NDArray[np.float64] = shares
    return found


def join(ensemble: str, fold: int, params: Any, out: Path, role: str) -> tuple[pd.DataFrame, NDArray, list[str]]:
    """The first member's predictions of a role, all members' probabilities (M, N, C) of the same images, the classes.

    Raises:
        DataError: predictions are missing, or the members disagree on images or classes.
    """
    tables = [
        read_parquet(out / "predictions" / run / str(fold) / f"{role}.parquet")
        .sort_values("image_id", ignore_index=True) for run in params.ensembles[ensemble].members
    ]  # fmt: skip
    first = tables[0]
    classes = [str(c).removeprefix("p_") for c in first.columns if str(c).startswith("p_")]
    for run, table in zip(params.ensembles[ensemble].members, tables, strict=True):
        if table["image_id"].tolist() != first["image_id"].tolist() or list(table.columns) != list(first.columns):
            raise DataError(
                f"{run} and {params.ensembles[ensemble].members[0]} predict different images or classes,"
                f" fold {fold}: train both again"
            )
    return first, np.stack([table[columns("p", classes)].to_numpy(float) for table in tables]), classes


def mean(p: NDArray, shares: NDArray) -> NDArray[np.float64]:
    """Sum of shares (M,) times probabilities (M, N, C): (N, C)."""
    mixed: NDArray[np.float64] = np.tensordot(shares, p, axes=1)
    return mixed


def tune_shares(ensemble: str, fold: int, params: Any, out: Path, checkpoints: Path) -> None:
    """Write ``out/tune/w/<ensemble>/<fold>.json``.

    Keys: ``members``; ``use`` (given or tuned) and ``used`` (those weights, by run); ``given`` and, where
    ``tuned: true`` asks for a search, ``tuned``: the weights and figures on the tune role; ``alternatives``, each
    member alone; ``study``, ``exact``, ``gain`` (out of bag), ``spread`` and ``trials`` of the search.

    Raises:
        DataError: predictions are missing, disagree on the images, or hold one class only.
    """
    settings, joined = params.tune, params.ensembles[ensemble]
    names = list(joined.members)
    read_tune(names[0], fold, out)
    table, p, _ = join(ensemble, fold, params, out, "tune")
    y = table["target"].to_numpy()
    true = p[:, np.arange(len(y)), y].T  # (N, M)
    given = np.array([joined.shares[name] for name in names])

    def loss_of(shares: NDArray, weights: NDArray | None = None) -> float:
        each = -np.log(np.clip(true @ shares, EPS, 1.0))
        return float(each.mean() if weights is None else (each @ weights) / weights.sum())

    def figures(shares: NDArray) -> dict[str, Any]:
        mixed = mean(p, shares)
        found = measure(y, mixed, decide(mixed))
        kept = {k: float(found[k][0]) for k in ("auroc", "accuracy", "macro_f1")}
        return {"weights": dict(zip(names, shares, strict=True)), "log_loss": loss_of(shares), **kept}

    found: dict[str, Any] = {
        "name": ensemble, "fold": fold, "images": len(y), "members": names, "given": figures(given), "tuned": None,
        "use": "given", "used": dict(zip(names, given, strict=True)), "trials": [],
        "alternatives": {name: figures(one) for name, one in zip(names, np.eye(len(names)), strict=True)},
    }  # fmt: skip
    if joined.tuned:
        seed = params.seed + fold
        study = run_study(
            lambda draws: loss_of(_normalised(draws, names)),
            {name: Axis(LEAST_DRAW, 1.0) for name in names},
            trials=settings.trials, seed=seed, checkpoints=checkpoints, storage=settings.storage,
            first=[{name: float(share / given.max()) for name, share in zip(names, given, strict=True)}],
            about={"name": ensemble, "fold": fold, "members": names, "true": true},
        )  # fmt: skip
        exact = best_shares(true)
        tuned = min((_normalised(study.best, names), exact), key=loss_of)
        patients = table["patient_id"].fillna(table["image_id"]).to_numpy()
        optima, gains = [], []
        for weight in cluster_weights(patients, settings.bootstrap, np.random.default_rng(seed)):
            best = best_shares(true, weight.astype(float), steps=STEPS_OF_A_RESAMPLE)
            optima.append(best)
            left_out = bootstrap.out_of_bag(weight)
            gains.append(loss_of(given, left_out) - loss_of(best, left_out) if left_out.any() else np.nan)
        gain = bootstrap.gain(np.array(gains), len(y))
        use = "tuned" if bootstrap.chosen(gain) == "tuned" else "given"
        spreads = (bootstrap.spread(column) for column in np.array(optima).T)
        found |= {
            "use": use, "used": dict(zip(names, tuned if use == "tuned" else given, strict=True)),
            "tuned": figures(tuned), "gain": gain.json(), "spread": dict(zip(names, spreads, strict=True)),
            "study": {"weights": dict(zip(names, _normalised(study.best, names), strict=True)),
                      "log_loss": study.objective},
            "exact": {"weights": dict(zip(names, exact, strict=True)), "log_loss": loss_of(exact),
                      "gap": study.objective - loss_of(exact)},
            "trials": study.trials,
        }  # fmt: skip
    write_json(out / "tune" / "w" / ensemble / f"{fold}.json", found)


def _normalised(draws: dict[str, float], names: list[str]) -> NDArray[np.float64]:
    drawn = np.array([draws[name] for name in names])
    return drawn / float(drawn.sum())


def apply_shares(ensemble: str, fold: int, params: Any, out: Path) -> None:
    """Write ``out/predictions/<ensemble>/<fold>/{tune,test}.parquet``, and ``external`` where all members have it.

    Columns as in any run's predictions, the logits being log p. Beside them ``weights.json``, what
    :func:`tune_shares` decided, and the members' attention maps joined (:func:`mean_map`).

    Raises:
        DataError: predictions or the weights are missing, or the members disagree on the images.
    """
    found = read_json(out / "tune" / "w" / ensemble / f"{fold}.json")
    names = list(params.ensembles[ensemble].members)
    shares = np.array([found["used"][name] for name in names])
    folder = out / "predictions" / ensemble / str(fold)
    for role in ("tune", "test", "external"):
        files = [out / "predictions" / run / str(fold) / f"{role}.parquet" for run in names]
        if role == "external" and not all(file.exists() for file in files):
            continue
        table, p, classes = join(ensemble, fold, params, out, role)
        mixed = mean(p, shares)
        table["run"] = ensemble
        table[columns("logit", classes)] = np.log(np.clip(mixed, EPS, 1.0))
        table[columns("p", classes)] = mixed
        write_parquet(folder / f"{role}.parquet", table)
    kept = ("use", "used", "given", "tuned")
    write_json(folder / "weights.json", {key: found[key] for key in kept})
    for role, file in ATTENTION_FILES.items():
        heat = mean_map(ensemble, fold, params, out, dict(zip(names, shares, strict=True)), role)
        if heat is not None:
            with atomic_path(folder / file) as temporary, open(temporary, "wb") as stream:
                np.save(stream, heat)


def same_frame(first: Any, second: Any) -> bool:
    """Whether two recipes show the same part of each picture in the same proportions, so that their maps lie alike."""
    if first.modality == "ct_volume":
        return bool((first.size, first.spacing_mm) == (second.size, second.spacing_mm)
                    and first.max_downscale == second.max_downscale)  # fmt: skip
    if not (first.keep_aspect or second.keep_aspect):
        return True  # the whole picture fills either grid
    square = first.size[0] * second.size[1] == first.size[1] * second.size[0]
    return bool(first.keep_aspect == second.keep_aspect and square)


def mean_map(
    ensemble: str, fold: int, params: Any, out: Path, shares: dict[str, float], role: str = "test"
) -> NDArray[np.float16] | None:
    """A role's attention maps averaged by weight, (N, h, w) or (N, d, h, w), images sorted.

    Coarser maps are interpolated to the cells of the finest. Members without maps, without weight, or whose recipe
    frames the picture unlike the first one's take no part; None where none is left.

    Raises:
        DataError: maps and predictions do not belong together.
    """
    recipe = params.recipes[params.runs[params.ensembles[ensemble].members[0]].recipe]
    maps: list[tuple[float, NDArray]] = []
    for run, share in shares.items():
        folder = out / "predictions" / run / str(fold)
        if share <= 0 or not (folder / ATTENTION_FILES[role]).exists():
            continue
        if not same_frame(recipe, params.recipes[params.runs[run].recipe]):
            continue
        heats = np.load(folder / ATTENTION_FILES[role], mmap_mode="r")
        order = np.argsort(read_parquet(folder / f"{role}.parquet")["image_id"].to_numpy(), kind="stable")
        if len(heats) != len(order):
            raise DataError(f"attention maps of {run}, fold {fold}, do not fit its predictions: train it again")
        maps.append((share, heats[order]))
    if not maps:
        return None
    cells = tuple(int(n) for n in np.max([heats.shape[1:] for _, heats in maps], axis=0))
    total = sum(share for share, _ in maps)
    joined = np.zeros((len(maps[0][1]), *cells), np.float16)
    for index in range(len(joined)):
        full = sum(share * upsample(heats[index], cells) for share, heats in maps)
        joined[index] = (np.asarray(full) / total).astype(np.float16)
    return joined
