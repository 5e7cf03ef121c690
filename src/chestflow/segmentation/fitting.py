"""On which images the X-ray lung segmenter may train, and how good it is on those that it did not see.

A segmenter must not know the images that a classifier is tuned or tested on. So it trains on images with source lung
masks whose group has no tune, test or external role in any trained fold of any cohort (``held_out``). Where that leaves
too few, as with five trained folds of a cohort that brings the masks itself, the groups are cut in two halves and each
half is segmented by a network that saw the other alone (``cross_fit``): no image's mask then comes from a network that
saw its group. The network that is kept for new files, and for groups without any mask, saw all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.config import CxrLungs
from chestflow.errors import DataError
from chestflow.parallel import ordered_map
from chestflow.segmentation import cxr_lungs
from chestflow.segmentation.cxr_lungs import LungSegmenter
from chestflow.segmentation.reading import paths, read_pair

JUDGED = ("tune", "test", "external")  # roles whose images a segmenter may not learn from
MIN_GROUPS = 8  # fewer groups than this do not make a segmenter
HELD_SHARE = 0.2  # of the groups, kept for the Dice where no judged image has a mask


@dataclass(frozen=True)
class Plan:
    """Who trains and who is measured.

    Attributes:
        mode: ``held_out`` or ``cross_fit``.
        table: image_id, group_id, patient, source, part; part 0 trains and 1 is measured when held out, and part 0
            and 1 train for each other when cross-fitted.
    """

    mode: str
    table: pd.DataFrame


@dataclass
class Fitted:
    """The network kept, the ones that stand in for it, and the evidence."""

    final: LungSegmenter
    evidence: dict[str, Any]
    others: dict[str, LungSegmenter] = field(default_factory=dict)  # by image_id

    def for_image(self, image_id: str) -> LungSegmenter:
        """The network that may segment an image: one that did not see its group."""
        return self.others.get(image_id, self.final)


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
    group_of = groups.set_index("image_id")["group_id"]
    masked = manifest["lung_mask"].map(lambda value: bool(paths(value)))
    table = manifest[(manifest["modality"] == "cxr") & manifest["source"].isin(sets) & masked]
    table = table[["image_id", "source", "path", "lung_mask", "patient_id"]].sort_values("image_id", ignore_index=True)
    table["group_id"] = table["image_id"].map(group_of).fillna(table["image_id"])
    table["patient"] = table["patient_id"].fillna(table["group_id"])
    if table["group_id"].nunique() < MIN_GROUPS:
        raise DataError(
            f"segment.cxr_lungs.sets {sets} has {table['group_id'].nunique()} patients with lung masks on X-rays,"
            f" {MIN_GROUPS} are needed: name other sets, or [] to go without lungs on X-rays"
        )
    judged = set(splits.loc[splits["role"].isin(JUDGED), "image_id"].map(group_of))
    barred = table["group_id"].isin(judged)
    free = np.sort(table.loc[~barred, "group_id"].unique())
    random = np.random.default_rng(seed)
    if len(free) < MIN_GROUPS:
        names = np.sort(table["group_id"].unique())
        second = set(random.permutation(names)[: len(names) // 2])
        return Plan("cross_fit", table.assign(part=table["group_id"].isin(second).astype(int)))
    if not barred.any():
        barred = table["group_id"].isin(set(random.permutation(free)[: max(1, round(HELD_SHARE * len(free)))]))
    return Plan("held_out", table.assign(part=barred.astype(int)))


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
    group_of, part_of = groups.set_index("image_id")["group_id"], dict(zip(table["group_id"], parts, strict=True))
    others = {str(image): halves[part_of[group]] for image, group in group_of.items() if group in part_of}
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
