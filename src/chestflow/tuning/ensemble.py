"""Stages tune_w and ensemble: P = w P_uniform + (1 - w) P_balanced, with w by infection ratio (paper 004, II-D).

w is ``w_extreme`` where the ratio is below ``cut_low`` or above ``cut_high`` (strictly), else ``w_middle``. Where the
ratio is unknown the uniform network answers alone (w = 1). The four values are searched on the tune role for the least
log loss of the mixture, and checked against the exact optimum on a grid of 0.01 over all distinct cut positions: the
log loss is a sum over images, so each ratio band has its own best w.
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
from chestflow.evaluation.metrics import decide, measure
from chestflow.files import read_json, read_parquet, write_json, write_parquet
from chestflow.segmentation import places
from chestflow.tuning import bootstrap
from chestflow.tuning.calibration import cut_positions, read_tune
from chestflow.tuning.studies import Axis, run_study

KEYS = ("w_extreme", "w_middle", "cut_low", "cut_high")
STEP = 0.01
#: Probabilities are kept this far from 0 and 1, so that log-odds and log loss stay finite.
EPS = 1e-7


def weight_of(ratio: NDArray, values: dict[str, float]) -> NDArray[np.float64]:
    """w of each image, (N,); 1 where the ratio is NaN."""
    extreme = (ratio < values["cut_low"]) | (ratio > values["cut_high"])
    w = np.where(extreme, values["w_extreme"], values["w_middle"])
    return np.where(np.isnan(ratio), 1.0, w)


def mix(uniform: NDArray, balanced: NDArray, w: NDArray) -> NDArray[np.float64]:
    """w P_uniform + (1 - w) P_balanced; probabilities (N, C), w (N,)."""
    mixed: NDArray[np.float64] = w[:, None] * uniform + (1 - w[:, None]) * balanced
    return mixed


def log_odds(p: NDArray) -> NDArray[np.float64]:
    """Logits whose softmax is p (up to 1e-7): log p_c - log p_0, so two classes give [0, log-odds of the positive]."""
    logs = np.log(np.clip(p, EPS, 1 - EPS))
    difference: NDArray[np.float64] = logs - logs[:, :1]
    return difference


def losses(uniform: NDArray, balanced: NDArray, w: NDArray) -> NDArray[np.float64]:
    """-log of the mixture of the true class's two probabilities, (N, W) for (N,), (N,) and a grid (W,)."""
    mixed = uniform[:, None] * w[None, :] + balanced[:, None] * (1 - w[None, :])
    loss: NDArray[np.float64] = -np.log(np.clip(mixed, EPS, 1.0))
    return loss


def scan(
    loss: NDArray, ratio: NDArray, grid: NDArray, lows: NDArray, highs: NDArray, weights: NDArray
) -> tuple[dict[str, float], float]:
    """The exact optimum over a grid of both weights and all given cuts.

    Args:
        loss: (N, W) from :func:`losses`, images with a known ratio only.
        ratio: (N,).
        grid: (W,) values of w.
        lows: (A,) values of cut_low.
        highs: (B,) values of cut_high, none below a cut_low.
        weights: (N,) of the images.

    Returns:
        The four values and their weighted sum of losses.
    """
    order = np.argsort(ratio, kind="stable")
    sums = np.vstack([np.zeros(len(grid)), np.cumsum((loss * weights[:, None])[order], axis=0)])
    under = sums[np.searchsorted(ratio[order], lows, side="left")]  # (A, W): r < cut_low
    upto = sums[np.searchsorted(ratio[order], highs, side="right")]  # (B, W): r <= cut_high
    middle = upto[None] - under[:, None]  # (A, B, W)
    extreme = sums[-1] - middle
    total = extreme.min(2) + middle.min(2)
    a, b = np.unravel_index(int(np.argmin(total)), total.shape)
    best = {
        "w_extreme": float(grid[np.argmin(extreme[a, b])]), "w_middle": float(grid[np.argmin(middle[a, b])]),
        "cut_low": float(lows[a]), "cut_high": float(highs[b]),
    }  # fmt: skip
    return best, float(total[a, b])


def _join(ensemble: str, fold: int, params: Any, out: Path, role: str) -> tuple[pd.DataFrame, pd.DataFrame, NDArray]:
    """Both networks' predictions of a role, row by row the same image, and the images' ratio (NaN where unknown)."""
    joined = params.ensembles[ensemble]
    first, second = (
        read_parquet(out / "predictions" / run / str(fold) / f"{role}.parquet")
        .sort_values("image_id", ignore_index=True) for run in (joined.uniform, joined.balanced)
    )  # fmt: skip
    if first["image_id"].tolist() != second["image_id"].tolist() or list(first.columns) != list(second.columns):
        raise DataError(
            f"{joined.uniform} and {joined.balanced} predict different images or classes, fold {fold}: train both again"
        )
    return first, second, _ratio(first, places.ratios(out, params.modality_of(ensemble)), "ratio")


def _ratio(answers: pd.DataFrame, known: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """A column of ratio.parquet in the order of the answers; NaN where unknown, everywhere without the column."""
    if column not in known:
        return np.full(len(answers), np.nan)
    joined = known.set_index("image_id")[column].reindex(answers["image_id"])
    found: NDArray = joined.astype("Float64").to_numpy(float, na_value=np.nan)
    return found


def tune_w(ensemble: str, fold: int, params: Any, out: Path, checkpoints: Path) -> None:
    """Write ``out/tune/w/<ensemble>/<fold>.json``: the tuned four values at its top, the rest beside them.

    Keys: ``w_extreme, w_middle, cut_low, cut_high`` (tuned), ``use`` (paper or tuned) and ``used`` (those values),
    ``objective``, ``paper``, ``swapped`` (the paper's two weights exchanged), ``alternatives``, ``study``, ``exact``,
    ``gain`` (out of bag), ``spread``, ``trials``. Log losses are means over all tune images.

    Raises:
        DataError: predictions are missing, disagree on the images, or hold one class only.
    """
    settings, joined = params.tune, params.ensembles[ensemble]
    first, second, ratio = _join(ensemble, fold, params, out, "tune")
    _, classes = read_tune(joined.uniform, fold, out)
    y, rows = first["target"].to_numpy(), np.arange(len(first))
    p_uniform, p_balanced = (t[columns("p", classes)].to_numpy(float) for t in (first, second))
    uniform, balanced = p_uniform[rows, y], p_balanced[rows, y]
    known = np.isfinite(ratio)
    fixed = float(losses(uniform[~known], balanced[~known], np.ones(1)).sum())
    seed, n = params.seed + fold, len(y)
    grid = np.round(np.arange(settings.w[0], settings.w[1] + STEP / 2, STEP), 10)
    table = losses(uniform[known], balanced[known], grid)
    cuts = {"cut_low": settings.cut_low, "cut_high": settings.cut_high}
    lows, highs = (cut_positions(ratio[known], low, high) for low, high in cuts.values())

    def loss_of(values: dict[str, float], weights: NDArray | None = None) -> float:
        each = -np.log(np.clip(mix(p_uniform, p_balanced, weight_of(ratio, values))[rows, y], EPS, 1.0))
        return float(each.mean() if weights is None else (each @ weights) / weights.sum())

    def figures(values: dict[str, float]) -> dict[str, Any]:
        p = mix(p_uniform, p_balanced, weight_of(ratio, values))
        found = measure(y, p, decide(p))
        return {
            **values,
            "log_loss": loss_of(values),
            **{k: float(found[k][0]) for k in ("auroc", "accuracy", "macro_f1")},
        }

    paper = {key: float(getattr(joined, key)) for key in KEYS}
    study = run_study(
        loss_of,
        {
            **{key: Axis(settings.w[0], settings.w[1], step=STEP) for key in ("w_extreme", "w_middle")},
            **{key: Axis(low, high, log=low > 0) for key, (low, high) in cuts.items()},
        },
        trials=settings.trials, seed=seed, checkpoints=checkpoints, storage=settings.storage, first=[paper],
        about={"name": ensemble, "fold": fold, "uniform": uniform, "balanced": balanced, "ratio": ratio},
    )  # fmt: skip
    exact, total = scan(table, ratio[known], grid, lows, highs, np.ones(int(known.sum())))
    exact_loss = (total + fixed) / n
    tuned = study.best if study.objective <= exact_loss else exact
    patients = first["patient_id"].fillna(first["image_id"]).to_numpy()
    optima, gains = [], []
    for weight in cluster_weights(patients, settings.bootstrap, np.random.default_rng(seed)):
        best, _ = scan(table, ratio[known], grid, lows, highs, weight[known])
        optima.append([best[key] for key in KEYS])
        left_out = bootstrap.out_of_bag(weight)
        gains.append(loss_of(paper, left_out) - loss_of(best, left_out) if left_out.any() else np.nan)
    gain = bootstrap.gain(np.array(gains), n)
    use = bootstrap.chosen(gain)
    swapped = {**paper, "w_extreme": paper["w_middle"], "w_middle": paper["w_extreme"]}
    alone = {name: {**paper, "w_extreme": w, "w_middle": w} for name, w in (("uniform", 1.0), ("balanced", 0.0))}
    write_json(
        out / "tune" / "w" / ensemble / f"{fold}.json",
        {
            "name": ensemble, "fold": fold, "images": n, "unknown_ratio": int((~known).sum()), **tuned,
            "use": use, "used": tuned if use == "tuned" else paper, "objective": loss_of(tuned),
            "tuned": figures(tuned), "paper": figures(paper), "swapped": figures(swapped),
            "alternatives": {name: figures(values) for name, values in alone.items()},
            "study": {**study.best, "log_loss": study.objective},
            "exact": {**exact, "log_loss": exact_loss, "gap": study.objective - exact_loss},
            "gain": gain.json(),
            "spread": {key: bootstrap.spread(column) for key, column in zip(KEYS, np.array(optima).T, strict=True)},
            "trials": study.trials,
        },
    )  # fmt: skip


def apply_w(ensemble: str, fold: int, params: Any, out: Path) -> None:
    """Write ``out/predictions/<ensemble>/<fold>/{tune,test}.parquet``, and ``external`` where both networks have it.

    Columns as in any run's predictions, the logits being log-odds, and ``w`` (used), ``w_paper``, ``w_tuned``,
    ``w_swapped`` (the paper's two weights exchanged) and, of the test role where a segmenter of volumes was trained,
    ``w_network``: the values in use at the ratio that a served model finds by itself. There is no attention.npy: the
    uniform network's maps stand for the ensemble.

    Raises:
        DataError: predictions or the tuned weights are missing, or the two networks disagree on the images.
    """
    found = read_json(out / "tune" / "w" / ensemble / f"{fold}.json")
    joined = params.ensembles[ensemble]
    values = {
        "w": found["used"], "w_paper": {key: float(getattr(joined, key)) for key in KEYS}, "w_tuned": found,
        "w_swapped": found["swapped"],
    }  # fmt: skip
    folder = out / "predictions" / ensemble / str(fold)
    for role in ("tune", "test", "external"):
        if role == "external" and not (out / "predictions" / joined.uniform / str(fold) / f"{role}.parquet").exists():
            continue
        first, second, ratio = _join(ensemble, fold, params, out, role)
        classes = [str(c).removeprefix("p_") for c in first.columns if str(c).startswith("p_")]
        p_uniform, p_balanced = (t[columns("p", classes)].to_numpy(float) for t in (first, second))
        table = first.copy()
        for column, weights in values.items():
            table[column] = weight_of(ratio, weights)
        as_served = _ratio(first, places.ratios(out, params.modality_of(ensemble)), "ratio_network")
        if role == "test" and np.isfinite(as_served).any():
            table["w_network"] = weight_of(as_served, values["w"])
        p = mix(p_uniform, p_balanced, table["w"].to_numpy())
        table["run"] = ensemble
        table[columns("logit", classes)] = log_odds(p)
        table[columns("p", classes)] = p
        write_parquet(folder / f"{role}.parquet", table)
