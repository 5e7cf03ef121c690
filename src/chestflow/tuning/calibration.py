"""Stage tune: temperature and operating threshold of one run or ensemble in one fold, on the tune role alone.

The temperature minimises the log loss (Guo et al., ICML 2017). The threshold, on the calibrated probability of
COVID-19, maximises a criterion: Youden's index, macro F1 or accuracy. Both are searched by Optuna and checked against
exact optima: a bounded convex search, and a scan over all distinct cut positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.errors import DataError
from chestflow.evaluation.calibration import RAW_TEMPERATURE, log_loss, log_softmax, probabilities, raw_threshold
from chestflow.evaluation.cases import columns
from chestflow.evaluation.intervals import Value, cluster_weights
from chestflow.evaluation.metrics import confusion, decide, overall
from chestflow.files import read_parquet, write_json
from chestflow.tuning import bootstrap
from chestflow.tuning.studies import Axis, run_study

#: Temperatures of the bootstrap's scan; neighbours differ by 2 to 3%.
GRID = 256


def read_tune(name: str, fold: int, out: Path) -> tuple[pd.DataFrame, list[str]]:
    """Tune-role answers with ``target`` and ``patient_id`` (the image's own id where unknown), and the classes.

    Raises:
        DataError: they are missing, or hold fewer than two classes.
    """
    table = read_parquet(out / "predictions" / name / str(fold) / "tune.parquet")
    classes = [str(c).removeprefix("logit_") for c in table.columns if str(c).startswith("logit_")]
    positive = (table["target"] == len(classes) - 1).to_numpy()
    if positive.all() or not positive.any():
        raise DataError(f"tune role of {name}, fold {fold}, has one class only: raise split.tune_share or add patients")
    if not np.isfinite(table[columns("logit", classes)].to_numpy(float)).all():
        raise DataError(f"predictions of {name}, fold {fold}, hold NaN or infinite logits: train it again")
    table["patient_id"] = table["patient_id"].fillna(table["image_id"])
    return table.sort_values("image_id", ignore_index=True), classes


def criterion_of(table: NDArray, criterion: str) -> NDArray[np.float64]:
    """``youden`` (COVID-19 against the rest), ``macro_f1`` or ``accuracy`` of confusion tables (..., C, C)."""
    flat = table.reshape(-1, *table.shape[-2:])
    if criterion != "youden":
        return overall(flat)[criterion].reshape(table.shape[:-2])
    hit, wrong = table[..., -1, -1], table[..., :-1, -1].sum(-1)
    ill, well = table[..., -1, :].sum(-1), table[..., :-1, :].sum((-1, -2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((ill > 0) & (well > 0), hit / ill - wrong / well, np.nan)


def cut_positions(scores: NDArray, low: float, high: float) -> NDArray[np.float64]:
    """Every distinct cut: both ends, and inside [low, high] one number between each two neighbouring scores."""
    distinct = np.unique(scores)
    between = (distinct[1:] + distinct[:-1]) / 2
    return np.unique(np.r_[low, between[(between > low) & (between < high)], high])


def scan_thresholds(
    y: NDArray, p: NDArray, thresholds: NDArray, criterion: str, weights: NDArray | None = None
) -> NDArray[np.float64]:
    """The criterion at each threshold, for each weighting of the images.

    Args:
        y: int (N,), true class.
        p: (N, C) probabilities, positive class last.
        thresholds: (T,) rising.
        criterion: see :func:`criterion_of`.
        weights: (R, N); None is one row of ones.

    Returns:
        (R, T).
    """
    weights = np.ones((1, len(y))) if weights is None else weights
    classes = p.shape[1]
    order = np.argsort(p[:, -1], kind="stable")
    below = np.searchsorted(p[order, -1], thresholds, side="left")  # images under each threshold
    rest, positive = (np.zeros((len(y), classes * classes)) for _ in range(2))
    rows = np.arange(len(y))
    rest[rows, y * classes + np.argmax(p[:, :-1], axis=1)] = 1
    positive[rows, y * classes + classes - 1] = 1
    # Moving the threshold past an image turns its positive call into one of the rest.
    change = (rest - positive)[order]
    scores = []
    for weight in np.asarray(weights, float):
        gathered = np.vstack([np.zeros(classes * classes), np.cumsum(change * weight[order, None], axis=0)])
        tables = (weight @ positive + gathered[below]).reshape(-1, classes, classes)
        scores.append(criterion_of(tables, criterion))
    return np.array(scores)


def best_position(scores: NDArray) -> NDArray[np.int64]:
    """Index of the best along the last axis (higher is better): the middle one where several tie; -1 if all are NaN."""
    filled = np.where(np.isnan(scores), -np.inf, scores)
    highest = filled.max(-1, keepdims=True)
    tied = np.cumsum(filled >= highest - 1e-12, axis=-1)
    middle = np.argmax(tied >= (tied[..., -1:] + 1) // 2, axis=-1)
    return np.where(np.isinf(highest[..., 0]), -1, middle).astype(np.int64)


def exact_temperature(logits: NDArray, y: NDArray, low: float, high: float) -> float:
    """The temperature in [low, high] with the least log loss; the loss is convex in 1/T, so the search is exact."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda x: log_loss(logits, y, float(np.exp(x))), bounds=(np.log(low), np.log(high)), method="bounded",
        options={"xatol": 1e-6},
    )  # fmt: skip
    ends = [float(np.exp(found.x)), low, high]
    return min(ends, key=lambda t: log_loss(logits, y, t))


def _temperature_spread(
    logits: NDArray, y: NDArray, weights: NDArray, low: float, high: float
) -> tuple[NDArray, NDArray]:
    """For each resample: its best temperature on a grid, and the fall in log loss against T = 1 out of the bag."""
    grid = np.geomspace(low, high, GRID)
    rows = np.arange(len(y))
    losses = np.stack([-log_softmax(logits, t)[rows, y] for t in grid], axis=1)  # (N, GRID)
    plain = -log_softmax(logits)[rows, y]
    place = np.argmin(weights @ losses, axis=1)
    left_out = bootstrap.out_of_bag(weights)
    count = left_out.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        fall = (left_out @ plain - np.take_along_axis(left_out @ losses, place[:, None], 1)[:, 0]) / count
    return grid[place], np.where(count > 0, fall, np.nan)


def _threshold_gain(y: NDArray, p: NDArray, raw: NDArray, settings: Any, weights: NDArray) -> tuple[NDArray, Value]:
    """For each resample its best threshold on ``p``, NaN where there is none, and the gain over the raw calls.

    Args:
        y: int (N,), true class.
        p: (N, C) probabilities that the threshold cuts.
        raw: (N, C) probabilities as they are, called as the papers do.
        settings: ``params.tune``.
        weights: (R, N) of the resamples.
    """
    cuts = cut_positions(p[:, -1], *settings.threshold)
    place = best_position(scan_thresholds(y, p, cuts, settings.criterion, weights))
    left_out = bootstrap.out_of_bag(weights)
    by_paper = criterion_of(confusion(y, decide(raw), p.shape[1], left_out), settings.criterion)
    by_tuned = scan_thresholds(y, p, cuts, settings.criterion, left_out)[np.arange(len(place)), place]
    differences = np.where(place >= 0, by_tuned - by_paper, np.nan)
    return np.where(place >= 0, cuts[place], np.nan), bootstrap.gain(differences, len(y))


def tune(name: str, fold: int, params: Any, out: Path, checkpoints: Path) -> None:
    """Write ``out/tune/calibration/<name>/<fold>.json``.

    Its keys: ``temperature`` and ``threshold`` (tuned), ``use`` (paper or tuned, for each) and ``default`` (the values
    that follow from it, which :func:`chestflow.evaluation.calibration.operating_points` reads), ``objective``,
    ``paper``, ``exact``, ``gain`` (out of bag, tuned against paper), ``spread`` and ``trials``.

    The temperature is decided first. A threshold belongs to the probabilities that it cuts, so where the temperature
    stays 1 while another was found, the threshold is scanned once more on the probabilities as they are: that scan's
    gain decides, and ``default`` holds its optimum if it wins. ``threshold`` itself stays that of the tuned pair.

    Args:
        name: a run or an ensemble.
        fold: of ``params.folds``.
        params: the checked parameters.
        out: the folder of outs.
        checkpoints: where the studies' journals lie.

    Raises:
        DataError: predictions are missing or hold one class only.
    """
    settings = params.tune
    table, classes = read_tune(name, fold, out)
    logits, y = table[columns("logit", classes)].to_numpy(float), table["target"].to_numpy()
    seed = params.seed + fold
    rng = np.random.default_rng(seed)
    weights = cluster_weights(table["patient_id"].to_numpy(), settings.bootstrap, rng)
    shared: dict[str, Any] = {"trials": settings.trials, "seed": seed, "checkpoints": checkpoints}
    shared["storage"] = settings.storage
    about = {"name": name, "fold": fold, "logits": logits, "target": y, "criterion": settings.criterion}

    low, high = settings.temperature
    study = run_study(
        lambda v: log_loss(logits, y, v["temperature"]), {"temperature": Axis(low, high, log=True)},
        about={**about, "study": "temperature"}, first=[{"temperature": 1.0}], **shared,
    )  # fmt: skip
    exact = {"temperature": exact_temperature(logits, y, low, high)}
    exact["log_loss"] = log_loss(logits, y, exact["temperature"])
    temperature = study.best["temperature"] if study.objective <= exact["log_loss"] else exact["temperature"]
    temperatures, falls = _temperature_spread(logits, y, weights, low, high)

    p = probabilities(logits, temperature)
    low, high = settings.threshold

    def miss(values: dict[str, float]) -> float:
        return -float(scan_thresholds(y, p, np.array([values["threshold"]]), settings.criterion)[0, 0])

    cuts = cut_positions(p[:, -1], low, high)
    searched = run_study(
        miss, {"threshold": Axis(low, high)}, about={**about, "study": "threshold", "temperature": temperature},
        first=[{"threshold": 0.5}], **shared,
    )  # fmt: skip
    at_cuts = scan_thresholds(y, p, cuts, settings.criterion)[0]
    exact["threshold"] = float(cuts[best_position(at_cuts)])
    exact["criterion"] = float(np.nanmax(at_cuts))
    # Many thresholds tie; the scan's choice is the middle of the best ones, and not one of them by chance.
    threshold = exact["threshold"]
    gains = {"temperature": bootstrap.gain(falls, len(y))}
    use = {"temperature": bootstrap.chosen(gains["temperature"])}
    raw = probabilities(logits)
    found, gains["threshold"] = _threshold_gain(y, p, raw, settings, weights)
    spread, decided = bootstrap.spread(found), threshold
    if use["temperature"] == "paper" and temperature != RAW_TEMPERATURE:
        raw_cuts = cut_positions(raw[:, -1], low, high)
        decided = float(raw_cuts[best_position(scan_thresholds(y, raw, raw_cuts, settings.criterion)[0])])
        _, gains["threshold"] = _threshold_gain(y, raw, raw, settings, weights)
    use["threshold"] = bootstrap.chosen(gains["threshold"])
    default = {
        "temperature": temperature if use["temperature"] == "tuned" else RAW_TEMPERATURE,
        "threshold": decided if use["threshold"] == "tuned" else raw_threshold(len(classes)),
    }
    tuned = {"temperature": temperature, "threshold": threshold}
    write_json(
        out / "tune" / "calibration" / name / f"{fold}.json",
        {
            "name": name, "fold": fold, "images": len(y), "patients": int(table["patient_id"].nunique()), **tuned,
            "criterion": settings.criterion, "use": use, "default": default,
            "objective": {"log_loss": log_loss(logits, y, temperature), "criterion": -miss(tuned)},
            "paper": {
                "temperature": RAW_TEMPERATURE, "threshold": raw_threshold(len(classes)),
                "log_loss": log_loss(logits, y),
                "criterion": float(criterion_of(confusion(y, decide(raw), len(classes)), settings.criterion)[0]),
            },
            "study": {
                "temperature": study.best["temperature"], "log_loss": study.objective,
                "threshold": searched.best["threshold"], "criterion": -searched.objective,
            },
            "exact": {
                **exact, "log_loss_gap": study.objective - exact["log_loss"],
                "criterion_gap": exact["criterion"] + searched.objective,
            },
            "gain": {key: value.json() for key, value in gains.items()},
            "spread": {"temperature": bootstrap.spread(temperatures), "threshold": spread},
            "trials": [
                *({"study": "temperature", **t} for t in study.trials),
                *({"study": "threshold", **t} for t in searched.trials),
            ],
        },
    )  # fmt: skip
