"""The same figures for parts of the test images: sex, age, site, source, infection ratio; and the ratio by itself.

Paper 004's Table III groups by infection ratio. Whether a network knows more than how much of the lung is ill, only
the ratio-only baseline tells: on that paper's test set it reaches .847 accuracy against the network's .859.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.evaluation.cases import age_band, columns, ratio_group, ratio_groups
from chestflow.evaluation.comparison import paired_delong
from chestflow.evaluation.intervals import Value
from chestflow.evaluation.metrics import decide, summarise
from chestflow.files import read_parquet
from chestflow.segmentation import places

#: Figures shown for a subgroup.
SHOWN = ("auroc", "pr_auc", "sensitivity", "specificity", "accuracy", "balanced_accuracy", "macro_f1", "ece")
RATIO_EPS = 1e-4
#: The two of :data:`chestflow.evaluation.evidence.VIEWS` that a group is shown by.
RAW, SERVED = ("metrics", "p", "called"), ("served", "served", "called_served")


def figures(
    part: pd.DataFrame, classes: list[str], *, resamples: int, seed: int, view: tuple[str, str, str] = RAW
) -> dict[str, Any]:
    """:data:`SHOWN` of some images, as plain values with intervals over patients.

    Args:
        part: the images.
        classes: of the task.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        view: of :data:`chestflow.evaluation.evidence.VIEWS`.
    """
    if part.empty:
        return {name: Value(float("nan"), reason="no image in this group").json() for name in SHOWN}
    _, prefix, called = view
    values = summarise(
        part["target"].to_numpy(),
        part[columns(prefix, classes)].to_numpy(float),
        part[called].to_numpy(),
        part["patient_id"].to_numpy(),
        resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return {name: values[name].json() for name in SHOWN}


def _entry(by: str, group: str, part: pd.DataFrame, classes: list[str], settings: Any, seed: int) -> dict[str, Any]:
    return {
        "by": by,
        "group": group,
        "images": len(part),
        "patients": int(part["patient_id"].nunique()),
        "positives": int((part["target"] == len(classes) - 1).sum()),
        "enough": len(part) >= settings.min_group,
        "metrics": figures(part, classes, resamples=settings.bootstrap, seed=seed),
        "served": figures(part, classes, resamples=settings.bootstrap, seed=seed, view=SERVED),
    }


def groupings(cases: pd.DataFrame, cuts: list[float]) -> dict[str, pd.Series]:
    """For each way of grouping, the group of each image (None where unknown)."""
    return {
        "sex": cases["sex"],
        "age": cases["age"].map(age_band),
        "site": cases["site"],
        "source": cases["source"],
        "ratio": cases["ratio"].map(lambda r: ratio_group(r, cuts)),
    }


def subgroups(cases: pd.DataFrame, classes: list[str], settings: Any, seed: int) -> list[dict[str, Any]]:
    """An entry for each group of each grouping; images whose group is unknown stand under ``unknown``."""
    found = []
    for by, groups in groupings(cases, settings.ratio_cuts).items():
        names = groups.astype("object").where(groups.notna(), "unknown")
        order = ratio_groups(settings.ratio_cuts) if by == "ratio" else []
        for group in sorted(names.unique(), key=lambda g: (order.index(g) if g in order else len(order), g)):
            found.append(_entry(by, group, cases[names == group], classes, settings, seed))
    return found


def sites_left_out(cases: pd.DataFrame, classes: list[str], settings: Any, seed: int) -> list[dict[str, Any]]:
    """Each site by itself and the rest without it: whether one site carries the result. The networks are not retrained.

    A site is named with its source; images without a site take part as their source.
    """
    site: pd.Series = cases["source"].astype(str) + np.where(
        cases["site"].isna(), "", ":" + cases["site"].fillna("").astype(str)
    )
    if site.nunique() < 2:
        return []
    return [
        {
            "site": name,
            "only": _entry("site", name, cases[site == name], classes, settings, seed),
            "without": _entry("site", f"all but {name}", cases[site != name], classes, settings, seed),
        }
        for name in sorted(site.unique())
    ]


def worst(entries: list[dict[str, Any]], figure: str = "auroc") -> dict[str, Any]:
    """The lowest served figure among the groups that are large enough and known; its value is null where none is."""
    able = [
        e for e in entries if e["enough"] and e["group"] != "unknown" and not np.isnan(e["served"][figure]["value"])
    ]
    if not able:
        return {"by": None, "group": None, figure: Value(float("nan"), reason="no group is large enough").json()}
    lowest = min(able, key=lambda e: e["served"][figure]["value"])
    return {"by": lowest["by"], "group": lowest["group"], figure: lowest["served"][figure]}


def ratio_feature(ratio: NDArray) -> NDArray[np.float64]:
    """log10(r + 1e-4), (N, 1)."""
    feature: NDArray[np.float64] = np.log10(np.asarray(ratio, float) + RATIO_EPS)[:, None]
    return feature


def ratio_scores(cases: pd.DataFrame, task: Any, modality: str, out: Path, folds: list[int]) -> NDArray[np.float64]:
    """P(COVID-19) from the infection ratio alone, (N,): logistic regression fitted on each fold's train and tune roles.

    NaN where an image's ratio is unknown, or where the fold has fewer than ten known ratios or one class only.
    """
    from sklearn.linear_model import LogisticRegression

    splits = read_parquet(out / "splits.parquet")
    splits = splits[(splits["cohort"] == task.cohort) & splits["role"].isin(["train", "tune"])]
    manifest = read_parquet(out / "manifest.parquet")[["image_id", "label"]]
    ratio = places.ratios(out, modality)[["image_id", "ratio"]]
    known = splits.merge(manifest, on="image_id").merge(ratio, on="image_id").dropna(subset=["ratio"])
    positive = list(task.classes.values())[-1]
    known = known[known["label"].isin([label for labels in task.classes.values() for label in labels])]
    scores = np.full(len(cases), np.nan)
    for fold in folds:
        fit = known[known["fold"] == fold]
        rows = np.flatnonzero((cases["fold"] == fold) & cases["ratio"].notna())
        y = fit["label"].isin(positive).to_numpy()
        if len(fit) < 10 or y.all() or not y.any() or not len(rows):
            continue
        model = LogisticRegression(C=1e6, max_iter=1000).fit(ratio_feature(fit["ratio"].to_numpy(float)), y)
        scores[rows] = model.predict_proba(ratio_feature(cases["ratio"].to_numpy()[rows]))[:, 1]
    return scores


def ratio_only(cases: pd.DataFrame, scores: NDArray, classes: list[str], settings: Any, seed: int) -> dict[str, Any]:
    """The baseline's figures beside the model's on the same images, COVID-19 against all others.

    Args:
        cases: pooled answers.
        scores: (N,) from :func:`ratio_scores`, pooled likewise.
        classes: of the task.
        settings: ``params.evaluate``.
        seed: of the bootstrap.
    """
    kept = np.isfinite(scores)
    part, p = cases[kept], scores[kept]
    counts = {"images": int(kept.sum()), "unknown": int((~kept).sum())}
    if not kept.any():
        return {
            **counts,
            "available": False,
            "reason": "no test image has a known infection ratio and a fitted baseline",
        }
    pairs = {"baseline": np.stack([1 - p, p], axis=1)}
    own = part[f"p_{classes[-1]}"].to_numpy(float)
    pairs["model"] = np.stack([1 - own, own], axis=1)
    y = (part["target"] == len(classes) - 1).to_numpy()
    patients = part["patient_id"].to_numpy()
    found: dict[str, Any] = {**counts, "available": True, "reason": None}
    for name, pair in pairs.items():
        values = summarise(
            y.astype(int), pair, decide(pair), patients,
            resamples=settings.bootstrap, rng=np.random.default_rng(seed),
        )  # fmt: skip
        found[name] = {figure: values[figure].json() for figure in SHOWN}
    test = paired_delong(y, own, p, patients)
    found["model_minus_baseline"] = {"auroc": test["difference"].json(), "p": test["p"]}
    return found


def ratio_table(cases: pd.DataFrame, scores: NDArray, classes: list[str], settings: Any, seed: int) -> list[dict]:
    """Paper 004's Table III: for each ratio group, counts of each class, the model's figures and the baseline's."""
    groups = cases["ratio"].map(lambda r: ratio_group(r, settings.ratio_cuts)).to_numpy(object)
    rows = []
    for group in [*ratio_groups(settings.ratio_cuts), None]:
        mine = groups == group if group is not None else cases["ratio"].isna().to_numpy()
        if group is None and not mine.any():
            continue
        part = cases[mine]
        row: dict[str, Any] = {"group": group or "unknown", "images": len(part)}
        row["classes"] = {c: int((part["target"] == i).sum()) for i, c in enumerate(classes)}
        row["metrics"] = figures(part, classes, resamples=settings.bootstrap, seed=seed)
        row["ratio_only"] = ratio_only(part, scores[mine], classes, settings, seed) if group else None
        rows.append(row)
    return rows
