"""The test answers joined to the truth, the one place where that happens, and their pooling over folds and patients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestflow.errors import DataError
from chestflow.evaluation.calibration import operating_points, probabilities
from chestflow.evaluation.metrics import decide
from chestflow.files import read_parquet
from chestflow.segmentation import places

#: Upper ends (exclusive) of the age bands in years, and their names.
AGE_BANDS = ((18, "under 18"), (45, "18-44"), (65, "45-64"), (200, "65 and over"))
#: A dual-sampling ensemble's w: in use, as stated, tuned, with the two stated values exchanged, and in use at the ratio
#: that a network finds.
WEIGHTS = ("w", "w_paper", "w_tuned", "w_swapped", "w_network")
#: Columns taken from the manifest.
FROM_MANIFEST = ["image_id", "patient_id", "label", "source", "sex", "age", "site"]


def columns(prefix: str, classes: list[str]) -> list[str]:
    """``p_normal, p_covid19`` and the like, in class order."""
    return [f"{prefix}_{c}" for c in classes]


def load(name: str, params: Any, out: Path, role: str = "test") -> pd.DataFrame:
    """Every answer of a run or ensemble in all folds of ``params.folds``, with the truth.

    Returns:
        One row per fold and image, sorted: ``fold, image_id, patient_id`` (the image's own id where the source names
        no patient), ``task, target`` (class index), ``p_<class>`` (raw), ``calibrated_<class>`` (after the fold's
        tuned temperature), ``threshold`` (the fold's tuned one), ``served_<class>`` and ``threshold_served`` (those in
        use; NaN calls the most probable), ``label, source, sex, age, site, ratio`` (NaN where unknown), and for
        dual-sampling ensembles :data:`WEIGHTS`. Empty where no fold has the role.

    Raises:
        DataError: predictions or calibration are missing, or an image is not in the manifest or in no class.
    """
    task = params.task_of(name)
    classes = list(task.classes)
    index = {label: i for i, labels in enumerate(task.classes.values()) for label in labels}
    parts = []
    for fold in params.folds:
        file = out / "predictions" / name / str(fold) / f"{role}.parquet"
        if role != "test" and not file.exists():
            continue
        answers = read_parquet(file)
        tuned, served = operating_points(out / "tune" / "calibration" / name / f"{fold}.json")
        logits = answers[columns("logit", classes)].to_numpy(float)
        if not np.isfinite(logits).all():
            raise DataError(f"predictions of {name}, fold {fold}, hold NaN or infinite logits: train it again")
        part = answers[["image_id", "task", *[c for c in WEIGHTS if c in answers]]].copy()
        part.insert(0, "fold", fold)
        part[columns("p", classes)] = probabilities(logits)
        part[columns("calibrated", classes)] = probabilities(logits, tuned.temperature)
        part[columns("served", classes)] = probabilities(logits, served.temperature)
        part["threshold"] = tuned.threshold
        part["threshold_served"] = np.nan if served.threshold is None else served.threshold
        parts.append(part)
    if not parts:
        return pd.DataFrame()
    cases = pd.concat(parts, ignore_index=True)
    manifest = read_parquet(out / "manifest.parquet")[FROM_MANIFEST]
    ratio = places.ratios(out, params.modality_of(name))[["image_id", "ratio"]]
    cases = cases.merge(manifest, on="image_id", how="left", validate="many_to_one", indicator=True)
    if (cases["_merge"] != "both").any():
        lost = cases.loc[cases["_merge"] != "both", "image_id"].iloc[0]
        raise DataError(f"predictions of {name} name image {lost}, which the manifest lacks: run `dvc repro` again")
    cases = cases.drop(columns="_merge").merge(ratio, on="image_id", how="left", validate="many_to_one")
    cases["target"] = cases["label"].map(index)
    if cases["target"].isna().any():
        lost = cases.loc[cases["target"].isna(), "image_id"].iloc[0]
        raise DataError(f"image {lost} has a label that is in no class of the task: run `dvc repro` again")
    cases = cases.astype({"target": "int64"})
    for column in ("age", "ratio"):
        cases[column] = pd.to_numeric(cases[column]).astype("Float64").to_numpy(float, na_value=np.nan)
    cases["patient_id"] = cases["patient_id"].fillna(cases["image_id"])
    return cases.sort_values(["fold", "image_id"], ignore_index=True)


def pool(cases: pd.DataFrame, classes: list[str]) -> tuple[pd.DataFrame, str]:
    """One row an image over all folds.

    Returns:
        The table with ``called`` (raw), ``called_tuned`` and ``called_served``, sorted by image, and how it was pooled:
        ``out_of_fold`` where each image was tested in one fold, ``fold_mean`` where folds share test images (an
        official test set): then probabilities and thresholds are averaged over the folds' networks, and the most
        probable class is served where at least half of the folds serve it.
    """
    how = "out_of_fold"
    if cases["image_id"].duplicated().any():
        how = "fold_mean"
        numbers = _numbers(classes)
        grouped = cases.groupby("image_id", as_index=False)
        means = grouped[numbers].mean()
        cut = grouped["threshold_served"].count()["threshold_served"]
        means.loc[2 * cut <= grouped.size()["size"], "threshold_served"] = np.nan
        cases = cases.drop_duplicates("image_id").drop(columns=numbers).merge(means, on="image_id")
    return call(cases.sort_values("image_id", ignore_index=True), classes), how


def call(cases: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Add the classes called: from raw probabilities, from calibrated ones at the tuned threshold, and as served."""
    cases = cases.copy()
    cases["called"] = decide(cases[columns("p", classes)].to_numpy(float))
    calibrated = cases[columns("calibrated", classes)].to_numpy(float)
    cases["called_tuned"] = decide(calibrated, cases["threshold"].to_numpy(float))
    served = cases[columns("served", classes)].to_numpy(float)
    cases["called_served"] = decide(served, cases["threshold_served"].to_numpy(float))
    return cases


def _numbers(classes: list[str]) -> list[str]:
    """The columns that are averaged where several answers become one."""
    prefixes = ("p", "calibrated", "served")
    return [*(c for prefix in prefixes for c in columns(prefix, classes)), "threshold", "threshold_served"]


def same_answers(
    cases: pd.DataFrame, classes: list[str], one: tuple[str, str, str], other: tuple[str, str, str]
) -> bool:
    """Whether two views (section, probability columns, call column) say the same of every image."""
    p, q = (cases[columns(view[1], classes)].to_numpy(float) for view in (one, other))
    return bool((p == q).all() and (cases[one[2]] == cases[other[2]]).all())


def per_patient(cases: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """One row a patient: mean probabilities over the patient's images; the patient's class is the highest class index
    among them, so one COVID-19 image makes a COVID-19 patient."""
    grouped = cases.groupby("patient_id", sort=True)
    table = grouped[_numbers(classes)].mean()
    table["target"] = grouped["target"].max()
    return call(table.reset_index(), classes)


def age_band(age: float) -> str | None:
    """The band of an age in years; None where it is unknown."""
    return None if np.isnan(age) else next(name for end, name in AGE_BANDS if age < end)


def ratio_group(ratio: float, cuts: list[float]) -> str | None:
    """The infection ratio's group: below the first cut, from one to below the next, from the last on (paper 004)."""
    if np.isnan(ratio):
        return None
    place = int(np.searchsorted(cuts, ratio, side="right"))
    if place == 0:
        return f"below {cuts[0]:g}"
    return f"from {cuts[-1]:g}" if place == len(cuts) else f"{cuts[place - 1]:g} to {cuts[place]:g}"


def ratio_groups(cuts: list[float]) -> list[str]:
    """Names of the groups in rising order."""
    return [str(ratio_group(edge, cuts)) for edge in (-1.0, *cuts)]
