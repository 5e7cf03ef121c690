"""The roles that a cohort's images have whatever the folds are: external, unlabelled, official test, excluded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from chestflow.config import Cohort

ROLES = ("train", "tune", "test", "external", "unlabelled", "masks_only", "excluded")
#: Roles whose images a network learns from, or is chosen or judged by: a group has one of them in a fold.
SIDES = ROLES[:-1]
NAMED = 20  # conflicting groups that the report lists; all are counted


def members_of(manifest: pd.DataFrame, cohort: Cohort, *, in_order: bool = True) -> pd.DataFrame:
    """The rows of a cohort: its sets, modality, views and labels, whatever their number.

    Unlabelled ones stay, but for the sets of which the cohort takes named labels alone.

    Args:
        manifest: all images.
        cohort: what takes part.
        in_order: sort by image_id and number anew; False keeps the manifest's order and index.
    """
    rows = manifest[
        manifest["source"].isin([*cohort.sets, *cohort.external]) & (manifest["modality"] == cohort.modality)
    ]
    if cohort.labels is not None:
        rows = rows[rows["label"].isin(cohort.labels) | rows["label"].isna()]
    if cohort.views is not None:
        rows = rows[rows["view"].isin(cohort.views) | rows["view"].isna()]
    if not cohort.official_test:
        rows = rows.assign(official_split=rows["official_split"].mask(rows["official_split"].notna()))
    if cohort.annotated:
        marked = rows["infection_mask"].map(_known) | rows["boxes"].map(_known)
        rows = rows[marked | ~rows["source"].isin(cohort.annotated)]
    for source, labels in cohort.take.items():
        rows = rows[(rows["source"] != source) | rows["label"].isin(list(labels))]
    return rows.sort_values("image_id", ignore_index=True) if in_order else rows


def fixed_roles(rows: pd.DataFrame, cohort: Cohort) -> tuple[pd.Series, pd.Series, dict[str, Any]]:
    """Roles that no fold changes.

    Returns:
        For each row its role, or null where the folds decide; why it is excluded, or null; and the conflicts between
        an official split and the groups: how many groups stand on both sides of it, and the first of them.
    """
    role = pd.Series(None, index=rows.index, dtype=object)
    why = pd.Series(None, index=rows.index, dtype=object)
    outside = rows["source"].isin(cohort.external)

    def exclude(where: pd.Series, reason: str) -> None:
        taken = where & (role != "excluded")
        role[taken], why[taken] = "excluded", reason

    unlabelled = rows["label"].isna()
    role[outside] = "external"
    exclude(outside & unlabelled, "external_without_label")
    exclude(~outside & rows["group_id"].isin(rows.loc[outside, "group_id"]), "in_a_group_with_an_external_image")
    exclude(_copies(rows, cohort, role != "excluded"), "copy_of_an_image_of_another_set")

    labelled = ~unlabelled & (role != "excluded")
    exclude(unlabelled & rows["group_id"].isin(rows.loc[labelled, "group_id"]), "unlabelled_in_a_labelled_group")
    # A group of unlabelled images is of use as a whole: with its masks, or without.
    masked = rows["lung_mask"].map(_known) | rows["infection_mask"].map(_known)
    rest = unlabelled & role.isna()
    with_masks = rows["group_id"].isin(rows.loc[rest & masked, "group_id"])
    exclude(rest & with_masks & ~masked, "without_mask_in_a_masked_group")
    role[rest & masked] = "masks_only"
    role[rest & ~with_masks] = "unlabelled"

    inside = role.isna()
    test = inside & (rows["official_split"] == "test").fillna(False)
    crossed = inside & ~test & rows["group_id"].isin(rows.loc[test, "group_id"])
    role[test] = "test"
    exclude(crossed, "in_a_group_with_an_official_test_image")
    return role, why, _conflicts(rows[inside])


def _conflicts(rows: pd.DataFrame) -> dict[str, Any]:
    sides = rows.dropna(subset=["official_split"]).groupby("group_id")["official_split"].unique()
    crossing = sides[sides.map(len) > 1]
    named = [{"group_id": group, "sides": sorted(both)} for group, both in crossing.head(NAMED).items()]
    images = rows["group_id"].isin(crossing.index)
    return {"groups": len(crossing), "images": int(images.sum()), "first": named}


def _known(value: Any) -> bool:
    return value is not None and hasattr(value, "__len__") and len(value) > 0


def _copies(rows: pd.DataFrame, cohort: Cohort, candidate: pd.Series) -> pd.Series:
    """Rows whose picture another of the cohort's sets also brings; within one set, copies stay together.

    Kept is the official test set's copy, else a labelled one, else that of the set named first.
    """
    sets = [*cohort.external, *cohort.sets]
    place = rows["source"].map({name: place for place, name in enumerate(sets)}).astype(float)
    place += len(sets) * rows["label"].isna() - 2 * len(sets) * (rows["official_split"] == "test").fillna(False)
    best = place.where(candidate).groupby(rows["picture_id"]).transform("min")
    kept = rows["source"].where(candidate & (place == best)).groupby(rows["picture_id"]).transform("first")
    return candidate & (rows["source"] != kept)
