"""Who may train a segmenter, and who is measured, so that no classifier is judged on images that it saw.

A segmenter must not know the images that a classifier is tuned or tested on. So it trains on images with source masks
whose group has no tune, test or external role in any trained fold of a cohort of its modality (``held_out``): a
classifier meets the masks of its own modality alone. Where that leaves too few, as with five trained folds of a cohort
that brings the masks itself, the groups are cut in two halves and each half is segmented by a network that saw the
other alone (``cross_fit``): no image's mask then comes from a network that saw its group. The network that is kept for
new files, and for groups without any mask, saw all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from chestflow.errors import DataError
from chestflow.segmentation.reading import with_paths

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


def candidates(
    manifest: pd.DataFrame, groups: pd.DataFrame, modality: str, sets: list[str], mask: str, *, healthy: bool = False
) -> pd.DataFrame:
    """The images that have what a segmenter learns from, in order of image_id.

    Args:
        manifest: all images.
        groups: image_id and group_id.
        modality: of the images.
        sets: whose masks may be used.
        mask: column of the masks: ``lung_mask`` or ``infection_mask``.
        healthy: images of label normal without a mask count too; theirs is empty.

    Returns:
        image_id, source, path, the mask column, patient_id, group_id, patient; the last two are never null.
    """
    known = with_paths(manifest[mask])
    if healthy:
        known |= (manifest["label"] == "normal").fillna(False).to_numpy(bool)
    table = manifest[(manifest["modality"] == modality) & manifest["source"].isin(sets) & known]
    table = table[["image_id", "source", "path", mask, "patient_id"]].sort_values("image_id", ignore_index=True)
    table["group_id"] = table["image_id"].map(groups.set_index("image_id")["group_id"]).fillna(table["image_id"])
    table["patient"] = table["patient_id"].fillna(table["group_id"])
    return table


def judged_groups(splits: pd.DataFrame, groups: pd.DataFrame, manifest: pd.DataFrame, modality: str) -> set[str]:
    """Groups of which an image of a modality is tuned or tested on in these folds of any cohort."""
    of = manifest.loc[manifest["modality"] == modality, "image_id"]
    judged = splits.loc[splits["role"].isin(JUDGED) & splits["image_id"].isin(of), "image_id"]
    return set(judged.map(groups.set_index("image_id")["group_id"]).fillna(judged))


def divide(table: pd.DataFrame, judged: set[str], seed: int, *, section: str, what: str) -> Plan:
    """Deal :func:`candidates` into who trains and who is measured.

    Args:
        table: as :func:`candidates` gives it.
        judged: as :func:`judged_groups` gives it.
        seed: of the cut in parts.
        section: of params.yaml, for the error.
        what: what the masks show and on which images, for the error.

    Raises:
        DataError: too few groups.
    """
    if table["group_id"].nunique() < MIN_GROUPS:
        raise DataError(
            f"{section}.sets has {table['group_id'].nunique()} patients with {what}, {MIN_GROUPS} are needed: name"
            f" other sets, or [] to go without"
        )
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


def halves_by_image(chosen: Plan, groups: pd.DataFrame) -> dict[str, int]:
    """image_id -> the part that its group is in, for all images of the plan's groups, masked or not."""
    part_of = dict(zip(chosen.table["group_id"], chosen.table["part"], strict=True))
    group_of = groups.set_index("image_id")["group_id"]
    found = {str(image): int(part_of[group]) for image, group in group_of.items() if group in part_of}
    return found | {str(i): int(p) for i, p in zip(chosen.table["image_id"], chosen.table["part"], strict=True)}
