"""Whether attention lies on the lesions: IoU beside the best that the map's resolution allows, pointing game, energy.

A map of 3 x 4 x 4 cells cannot outline a small lesion, however right it is; so each IoU stands beside the best one
that a map of that resolution is known to reach for that lesion.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.data.packs import Pack
from chestflow.errors import DataError
from chestflow.evaluation.cases import ratio_group, ratio_groups
from chestflow.evaluation.intervals import Value, cluster_weights, percentile_interval
from chestflow.evaluation.truth import BOXES, NONE, OUTLINE, Truth
from chestflow.files import ATTENTION_FILES, read_parquet
from chestflow.imaging.regions import bounding_box, largest_components, slices

LUNG_BIT = 1
#: Levels at which a linearly interpolated map is cut when its best IoU is sought.
LEVELS = np.linspace(0.02, 0.98, 49)


def interpolation(cells: int, size: int) -> NDArray[np.float32]:
    """(size, cells) weights of linear interpolation with half-pixel centres (``align_corners=False``)."""
    place = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, cells - 1)
    weights = np.zeros((size, cells), np.float32)
    np.add.at(weights, (np.arange(size), low), 1 - (place - low))
    np.add.at(weights, (np.arange(size), high), place - low)
    return weights


def upsample(heat: NDArray, size: tuple[int, ...]) -> NDArray[np.float32]:
    """(h, w) or (d, h, w) to ``size``, linear along each axis."""
    result: NDArray = np.asarray(heat, np.float32)
    for axis, length in enumerate(size):
        result = np.moveaxis(np.tensordot(interpolation(result.shape[axis], length), result, (1, axis)), 0, axis)
    return result.astype(np.float32, copy=False)


def rescale(heat: NDArray) -> NDArray[np.float32]:
    """To [0, 1] by its own range, after upsampling as paper 004 has it; a constant map becomes zeros."""
    low, high = float(heat.min()), float(heat.max())
    if high - low < 1e-6:
        return np.zeros(heat.shape, np.float32)
    return ((heat - low) / (high - low)).astype(np.float32, copy=False)


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Intersection over union; NaN where both are empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else float("nan")


def cell_sums(mask: NDArray, cells: tuple[int, ...]) -> tuple[NDArray, NDArray]:
    """Marked pixels, and all pixels, in each cell of a coarse grid laid over a mask; both of shape ``cells``."""
    sums = mask.astype(np.float64)
    counts = np.ones(())
    for axis, (number, length) in enumerate(zip(cells, mask.shape, strict=True)):
        cell = ((np.arange(length) + 0.5) * number / length).astype(int)
        member = (cell[None, :] == np.arange(number)[:, None]).astype(np.float64)
        sums = np.moveaxis(np.tensordot(member, sums, (1, axis)), 0, axis)
        counts = np.multiply.outer(counts, member.sum(1))
    return sums, counts


def best_block_iou(mask: NDArray[np.bool_], cells: tuple[int, ...]) -> float:
    """The highest IoU of any union of whole cells with a non-empty mask; exact.

    With m marked of n pixels in a cell and M marked in all, IoU = sum m / (M + sum (n - m)): a ratio of sums, whose
    optimum takes cells in the order of m / n.
    """
    sums, counts = (a.ravel() for a in cell_sums(mask, cells))
    order = np.argsort(-np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0), kind="stable")
    hit = np.cumsum(sums[order])
    return float((hit / (sums.sum() + np.cumsum((counts - sums)[order]))).max())


def best_iou(mask: NDArray[np.bool_], cells: tuple[int, ...]) -> float:
    """The best IoU known to be within reach of a map of ``cells`` for a non-empty mask.

    The larger of the exact optimum over whole cells and the best cut through the interpolated share of each cell that
    the lesion fills. No map is excluded from doing better by a little: it is a value that can be had, not a bound.
    """
    sums, counts = cell_sums(mask, cells)
    filled = upsample(np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0), mask.shape)
    highest = float(filled.max())
    return max(best_block_iou(mask, cells), *(iou(filled >= level * highest, mask) for level in LEVELS))


def framed(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The bounding boxes, filled, of the connected parts of at least a tenth of the largest."""
    frames = np.zeros(marked.shape, dtype=bool)
    for part in largest_components(marked, count=int(marked.sum()) or 1, min_share=0.1):
        frames[slices(bounding_box(part))] = True
    return frames


def localise(
    heat: NDArray,
    lesion: NDArray[np.bool_],
    lung: NDArray[np.bool_] | None,
    *,
    threshold: float,
    boxed: bool = False,
) -> dict[str, Any]:
    """How one map lies on one image's lesions and lungs.

    Args:
        heat: (h, w) or (d, h, w), non-negative.
        lesion: (H, W) or (D, H, W), the picture's grid; empty where no truth is known.
        lung: on the same grid; None where it is unknown.
        threshold: of the map, upsampled and scaled to [0, 1] (paper 004: beta = 0.4).
        boxed: whether ``lesion`` fills boxes; then the map's marked parts are boxed too, and compared so.

    Returns:
        ``iou`` and ``best_iou`` (NaN without a lesion); ``pointing``, whether the map's highest pixel lies in a lesion
        (1 or 0); ``energy_lesion`` and ``energy_lung``, shares of the map's sum (NaN for a map of zeros);
        ``lesion_share``, lesion pixels of all: what a uniform map would score in energy.
    """
    full = rescale(upsample(heat, lesion.shape))
    total = float(full.sum())
    found: dict[str, Any] = dict.fromkeys(("iou", "best_iou", "pointing", "energy_lesion", "energy_lung"), float("nan"))
    found["lesion_share"] = float(lesion.mean())
    if lung is not None and total > 0:
        found["energy_lung"] = float(full[lung].sum()) / total
    if lesion.any():
        # A map of zeros marks nothing, hits nothing: that is a miss and not an undefined value.
        marked = (full >= threshold) & (full > 0)
        found["iou"] = iou(framed(marked) if boxed else marked, lesion)
        found["best_iou"] = best_iou(lesion, heat.shape)
        found["pointing"] = float(lesion.flat[int(np.argmax(full))]) if total > 0 else 0.0
        found["energy_lesion"] = float(full[lesion].sum()) / total if total > 0 else float("nan")
    return found


def maps_of(name: str, params: Any, out: Path) -> str:
    """Whose attention maps stand for a run or an ensemble: its own where it has some, else its first network's."""
    folds = [out / "predictions" / name / str(fold) for fold in params.folds]
    return name if all((folder / "attention.npy").exists() for folder in folds) else str(params.runs_of(name)[0])


def localise_cases(
    cases: pd.DataFrame, run: str, pack_folder: Path, out: Path, settings: Any, role: str = "test"
) -> pd.DataFrame:
    """Every answer with a known lesion, box or lung mask; memory holds one map and one mask at a time.

    Args:
        cases: with ``fold, image_id``, of the role.
        run: whose attention maps are read; their rows follow its predictions of the role.
        pack_folder: the pack that the run was trained from.
        out: the folder of outs.
        settings: ``params.evaluate``: ``attention_threshold`` for outlines, ``box_threshold`` for boxes.
        role: test or external.

    Returns:
        ``fold, image_id, truth`` (outline, boxes or none) and :func:`localise`'s figures; empty where the run has no
        attention maps.

    Raises:
        DataError: maps and predictions do not belong together.
    """
    pack = Pack.open(pack_folder)
    known = pack.index.set_index("image_id")
    source = Truth(pack, out)
    rows: list[dict[str, Any]] = []
    for fold, part in cases.groupby("fold"):
        folder = out / "predictions" / run / str(fold)
        file = folder / ATTENTION_FILES[role]
        if not file.exists():
            continue
        heats = np.load(file, mmap_mode="r")
        place = {image: i for i, image in enumerate(read_parquet(folder / f"{role}.parquet")["image_id"])}
        if len(heats) != len(place):
            raise DataError(f"attention maps of {run}, fold {fold}, do not fit its predictions: train it again")
        for image in part["image_id"]:
            about, truth = known.loc[image], source.kind(image)
            if not about["has_lung"] and truth == NONE:
                continue
            bits = np.asarray(pack.masks[int(about["row"])])
            lesion = source.lesion(image, bits)
            if lesion is None:
                lesion = np.zeros(bits.shape, dtype=bool)
            lung = (bits & LUNG_BIT) > 0 if about["has_lung"] else None
            heat = np.asarray(heats[place[image]], np.float32)
            boxed = truth == BOXES
            cut = settings.box_threshold if boxed else settings.attention_threshold
            found = localise(heat, lesion, lung, threshold=cut, boxed=boxed)
            rows.append({"fold": fold, "image_id": image, "truth": truth, **found})
    return pd.DataFrame(rows)


#: Figures of :func:`localise` that are averaged over images.
AVERAGED = ("iou", "best_iou", "pointing", "energy_lesion", "energy_lung", "lesion_share")


def average(part: pd.DataFrame, *, resamples: int, seed: int) -> dict[str, Any]:
    """Means over images with intervals over patients, and ``iou_share``: mean IoU over mean best IoU."""
    values: dict[str, Any] = {"images": len(part), "patients": int(part["patient_id"].nunique())}
    weights = cluster_weights(part["patient_id"].to_numpy(), resamples, np.random.default_rng(seed))
    sums: dict[str, tuple[float, NDArray]] = {}
    for name in AVERAGED:
        figure = part[name].to_numpy(float)
        defined = np.isfinite(figure)
        if not defined.any():
            values[name] = Value(float("nan"), reason="no image where it is defined").json()
            continue
        total = (weights[:, defined] @ figure[defined].astype(np.float32)).astype(float)
        count = weights[:, defined].sum(1, dtype=float)
        means = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
        sums[name] = (float(figure[defined].mean()), means)
        values[name] = percentile_interval(sums[name][0], means, int(defined.sum())).json()
    if "iou" in sums and sums["best_iou"][0] > 0:
        own, best = sums["iou"], sums["best_iou"]
        share = percentile_interval(own[0] / best[0], own[1] / best[1], values["iou"]["n"])
        values["iou_share"] = share.json()
    else:
        values["iou_share"] = Value(float("nan"), reason="no image with a lesion mask").json()
    return values


def summarise_localisation(
    maps: pd.DataFrame, cases: pd.DataFrame, classes: list[str], settings: Any, run: str, seed: int
) -> dict[str, Any]:
    """Localisation over COVID-19 images with outlined lesions, by infection-ratio group, over other images with
    outlines, and over images with boxes, whatever they show.

    Args:
        maps: from :func:`localise_cases`.
        cases: with ``fold, image_id, patient_id, target, ratio``.
        classes: of the task.
        settings: ``params.evaluate``.
        run: whose maps these are.
        seed: of the bootstrap.
    """
    threshold = settings.attention_threshold
    if maps.empty:
        reason = "no attention maps, or no test image with a lung or lesion mask"
        return {"available": False, "reason": reason, "run": run, "threshold": threshold}
    about = cases[["fold", "image_id", "patient_id", "target", "ratio"]]
    table = maps.merge(about, on=["fold", "image_id"], validate="one_to_one")
    positive = table["target"] == len(classes) - 1
    lesion, boxed = table["iou"].notna() & (table["truth"] == OUTLINE), table["truth"] == BOXES
    table["group"] = table["ratio"].map(lambda r: ratio_group(r, settings.ratio_cuts))

    def of(part: pd.DataFrame) -> dict[str, Any]:
        return average(part, resamples=settings.bootstrap, seed=seed)

    ill = table[positive & lesion]
    groups = [{"group": g, **of(ill[ill["group"] == g])} for g in ratio_groups(settings.ratio_cuts)]
    return {
        "available": True, "reason": None, "run": run, "threshold": threshold,
        "covid19": of(ill), "by_ratio": groups, "others": of(table[~positive & lesion]),
        "boxes": {"threshold": settings.box_threshold, **of(table[boxed])} if boxed.any() else None,
        "all_images": of(table),
    }  # fmt: skip
