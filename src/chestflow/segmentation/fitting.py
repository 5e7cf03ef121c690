"""Training the X-ray lung segmenter on the images that :mod:`.planning` allows, and how good it is on the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.config import CxrLungs
from chestflow.parallel import ordered_map
from chestflow.segmentation import cxr_lungs
from chestflow.segmentation.cxr_lungs import LungSegmenter
from chestflow.segmentation.planning import MIN_GROUPS, Plan, candidates, divide, halves_by_image, judged_groups
from chestflow.segmentation.reading import paths, read_pair


@dataclass
class Fitted:
    """The network kept, the ones that stand in for it, and the evidence."""

    final: LungSegmenter
    evidence: dict[str, Any]
    others: dict[str, LungSegmenter] = field(default_factory=dict)  # by image_id

    def for_image(self, image_id: str) -> LungSegmenter:
        """The network that may segment an image: one that did not see its group."""
        return self.others.get(image_id, self.final)


__all__ = ["MIN_GROUPS", "Fitted", "Plan", "fit", "plan"]


def plan(manifest: pd.DataFrame, splits: pd.DataFrame, groups: pd.DataFrame, sets: list[str], seed: int) -> Plan:
    """Choose the images to train on and to measure.

    Args:
        manifest: all images.
        splits: roles in the trained folds of all cohorts.
        groups: image_id and group_id.
        sets: whose lung masks may be used.
        seed: of the cut in parts.

    Raises:
        DataError: too few X-rays with lung masks.
    """
    table = candidates(manifest, groups, "cxr", sets, "lung_mask")
    return divide(
        table,
        judged_groups(splits, groups, manifest, "cxr"),
        seed,
        section="segment.cxr_lungs",
        what="lung masks on X-rays",
    )


def fit(
    manifest: pd.DataFrame,
    splits: pd.DataFrame,
    groups: pd.DataFrame,
    settings: CxrLungs,
    *,
    seed: int,
    threads: int,
    workers: int | None,
) -> Fitted:
    """Train the segmenter, or the cross-fitted ones, and measure the Dice by patient on what each did not see."""
    chosen = plan(manifest, splits, groups, settings.sets, seed)
    table = chosen.table
    cases = list(zip(table["image_id"], table["path"], table["lung_mask"].map(paths), strict=True))
    pairs = list(ordered_map(partial(read_pair, size=settings.size), cases, workers))
    images, masks = np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])
    parts = table["part"].to_numpy()

    def trained(rows: NDArray[np.bool_]) -> LungSegmenter:
        return cxr_lungs.train(images[rows], masks[rows], settings, seed=seed, threads=threads)

    if chosen.mode == "held_out":
        final = trained(parts == 0)
        evidence = _evidence(chosen, [(1, final)], images, masks)
        return Fitted(final, evidence)
    halves = {part: trained(parts != part) for part in (0, 1)}
    evidence = _evidence(chosen, list(halves.items()), images, masks)
    others = {image: halves[part] for image, part in halves_by_image(chosen, groups).items()}
    return Fitted(trained(np.ones(len(table), dtype=bool)), evidence, others)


def _evidence(
    chosen: Plan, networks: list[tuple[int, LungSegmenter]], images: NDArray[np.uint8], masks: NDArray[np.bool_]
) -> dict[str, Any]:
    """Dice on the network's square: per image, their mean per patient, and the mean over patients."""
    parts = chosen.table["part"].to_numpy()
    dice = np.full(len(parts), np.nan)
    for part, network in networks:
        for row in np.flatnonzero(parts == part):
            found = cxr_lungs.outline(cxr_lungs.probabilities(network, images[row][None])[0], masks[row].shape)
            dice[row] = cxr_lungs.dice(found, masks[row])
    measured = chosen.table.assign(dice=dice)[~np.isnan(dice)]
    by_patient = measured.groupby("patient")["dice"].mean().sort_index()
    by_set = measured.groupby(["source", "patient"])["dice"].mean().groupby("source").agg(["mean", "min", "count"])
    seen = parts == 0 if chosen.mode == "held_out" else np.ones(len(parts), dtype=bool)
    return {
        "mode": chosen.mode,
        "trained_on": {"images": int(seen.sum()), "patients": int(chosen.table.loc[seen, "patient"].nunique())},
        "dice": {
            "mean": by_patient.mean(),
            "sd": by_patient.std(),
            "min": by_patient.min(),
            "patients": len(by_patient),
            "images": len(measured),
        },
        "dice_by_set": by_set.rename(columns={"count": "patients"}).to_dict("index"),
        "dice_by_patient": by_patient.to_dict(),
    }
