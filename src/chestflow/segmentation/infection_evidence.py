"""How good an infection segmenter is on images that it did not see: overlap by patient, healthy ones, the ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.data.references import LESIONS
from chestflow.evaluation.segmentation_metrics import METRICS, measure, summarise

Mask = NDArray[np.bool_]
RESAMPLES = 1000  # of the bootstrap over patients


@dataclass(frozen=True)
class Measured:
    """One image, truth against what was found, on its original grid.

    Attributes:
        image_id, source, patient: of the image.
        infected: there is infection in it.
        marked: share of the pixels or voxels that were found infected.
        metrics: as :func:`chestflow.evaluation.segmentation_metrics.measure` gives them.
        true_ratio: infection / lung of the source's masks; NaN where it gives no lungs.
        found_ratio: the same of found infection and found lungs; NaN where no lungs are found.
        kinds: number of :data:`chestflow.data.references.LESIONS` -> metrics of the kinds that the source shows in it.
    """

    image_id: str
    source: str
    patient: str
    infected: bool
    marked: float
    metrics: dict[str, float]
    true_ratio: float
    found_ratio: float
    kinds: dict[int, dict[str, float]] = field(default_factory=dict)


def ratio(infection: Mask, lung: Mask | None) -> float:
    """Infected share of the lungs, which the infection widens; NaN without lungs."""
    if lung is None or not lung.any():
        return math.nan
    return float(infection.sum() / (lung | infection).sum())


def compare(
    about: tuple[str, str, str],
    truth: Mask,
    probability: NDArray[np.float32],
    threshold: float,
    *,
    spacing: Sequence[float] | None = None,
    lung: Mask | None = None,
    true_lung: Mask | None = None,
    kinds: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None,
) -> Measured:
    """Measure one image.

    Args:
        about: image_id, source, patient.
        truth: the source's infection, (H, W) or (D, H, W).
        probability: the network's, the same shape.
        threshold: above it is infection.
        spacing: mm along each axis; None measures distances in pixels.
        lung: as a served model would find it.
        true_lung: the source's.
        kinds: the source's and the found ones, each like ``truth``; None where either is not told.
    """
    found = probability > threshold
    infected = bool(truth.any())
    return Measured(
        *about,
        infected,
        float(found.mean()),
        measure(np.clip(probability, 0, 1), truth, spacing, threshold),
        ratio(truth, true_lung),
        ratio(found, lung),
        {} if kinds is None else _by_kind(*kinds, spacing),
    )


def _by_kind(
    truth: NDArray[np.uint8], found: NDArray[np.uint8], spacing: Sequence[float] | None
) -> dict[int, dict[str, float]]:
    return {
        kind: measure((found == kind).astype(np.float32), truth == kind, spacing, 0.5)
        for kind in LESIONS
        if (truth == kind).any()
    }


def ratio_error(true: Sequence[float], found: Sequence[float]) -> dict[str, float | int]:
    """How far found infection ratios lie from the true ones.

    Args:
        true: infection / lung of each image, in [0, 1].
        found: the same, as segmented.

    Returns:
        ``images``; ``mae`` and ``bias`` (found minus true) as means, the ``worst`` absolute error, and the ``rank``
        correlation (Spearman's); NaN where there are too few.

    Raises:
        ValueError: the two differ in number.
    """
    a, b = np.asarray(true, float), np.asarray(found, float)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} true ratios and {len(b)} found ones")
    if not len(a):
        return {"images": 0, "mae": math.nan, "bias": math.nan, "worst": math.nan, "rank": math.nan}
    varied = len(a) > 2 and len(set(a)) > 1 and len(set(b)) > 1
    rank = float(np.corrcoef(pd.Series(a).rank(), pd.Series(b).rank())[0, 1]) if varied else math.nan
    error = b - a
    return {
        "images": len(a),
        "mae": float(np.abs(error).mean()),
        "bias": float(error.mean()),
        "worst": float(np.abs(error).max()),
        "rank": rank,
    }


def evidence(measured: Sequence[Measured]) -> dict[str, Any]:
    """Figures of a held set: each metric per image, its mean per patient, then over patients with an interval.

    Healthy images enter none of them, one false pixel would make their Dice 0: of them it is said how many stay empty,
    and how much of each is marked.
    """
    infected = [one for one in measured if one.infected]
    healthy = [one for one in measured if not one.infected]
    rows = [{"source": one.source, "patient": one.patient, **one.metrics} for one in infected]
    cases = pd.DataFrame(rows, columns=["source", "patient", *METRICS])
    by_patient = cases.groupby("patient")[list(METRICS)].mean().sort_index()
    by_set = cases.groupby(["source", "patient"])["dice"].mean().groupby("source").agg(["mean", "min", "count"])
    known = [one for one in measured if not math.isnan(one.true_ratio) and not math.isnan(one.found_ratio)]
    return {
        "images": len(infected),
        "patients": len(by_patient),
        "figures": _figures(cases),
        "by_set": {
            str(source): {"images": len(rows), "patients": rows["patient"].nunique(), "figures": _figures(rows)}
            for source, rows in cases.groupby("source")
        },
        **({"by_kind": kinds} if (kinds := _kinds(infected)) else {}),
        "dice_by_set": by_set.rename(columns={"count": "patients"}).to_dict("index"),
        "dice_by_patient": by_patient["dice"].to_dict(),
        "healthy": {
            "images": len(healthy),
            "empty": sum(one.marked == 0 for one in healthy),
            "marked_share": float(np.mean([one.marked for one in healthy])) if healthy else math.nan,
        },
        "ratio_error": ratio_error([one.true_ratio for one in known], [one.found_ratio for one in known]),
    }


def _kinds(infected: Sequence[Measured]) -> dict[str, Any]:
    """The figures of each kind of lesion, over the images that show it; nothing where no kind was told."""
    found = {}
    for kind, name in LESIONS.items():
        shown = [one for one in infected if kind in one.kinds]
        if shown:
            cases = pd.DataFrame([{"patient": one.patient, **one.kinds[kind]} for one in shown])
            found[name] = {
                "images": len(shown), "patients": cases["patient"].nunique(), "figures": _figures(cases),
            }  # fmt: skip
    return found


def _figures(cases: pd.DataFrame) -> dict[str, Any]:
    """Each metric's mean over the patients' means, with a bootstrap interval; nothing without cases."""
    if cases.empty:
        return {}
    by_patient = cases.groupby("patient")[list(METRICS)].mean().sort_index()
    drawn = summarise(by_patient, list(by_patient.index), resamples=RESAMPLES, rng=np.random.default_rng(0))
    return {name: asdict(value) for name, value in drawn.items()}
