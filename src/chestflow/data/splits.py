"""Stage split: each cohort's images in roles, fold by fold, so that no group of images stands on two sides.

With k folds, test is fold f, and tune a stratified, grouped share of the rest. With an official test set that is test
in every fold, and fold f is tune, whose predictions are then the out-of-fold ones; a cohort may move more images to it.
External sets are tested on and never trained on; what is in a group with one of their images is excluded, and counted.
A cohort may take given numbers of images from its sets: what it does not take has no role in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from chestflow.data.assignment import folds, share_of, stream
from chestflow.data.covidx_tests import moved_to_test
from chestflow.data.groups import Groups, group_images
from chestflow.data.roles import fixed_roles, members_of
from chestflow.data.same_picture import Thumbnails
from chestflow.data.taking import shortfalls, take
from chestflow.errors import DataError
from chestflow.files import read_parquet, write_json, write_parquet

if TYPE_CHECKING:  # pydantic is not needed to split
    from chestflow.config import Cohort, Split

COLUMNS = ["cohort", "fold", "image_id", "group_id", "role"]


def make_splits(
    manifest: pd.DataFrame,
    cohorts: Mapping[str, Cohort],
    split: Split,
    *,
    seed: int,
    thumbnails: Thumbnails | None = None,
    groups: Groups | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Roles of all images of all cohorts in all folds.

    Args:
        manifest: all images, in any order: the order does not change the result.
        cohorts: name -> sets, modality, labels, external sets, and what is taken from the sets or moved to the test.
        split: number of folds, tune's share, and what counts as the same picture.
        seed: of the folds; each cohort draws from a stream of its own, so that one more cohort changes no other.
        thumbnails: where thumbnails come from; None reads the files.
        groups: of these images, where they are known already.

    Returns:
        The long table of :data:`COLUMNS` (a row per cohort, fold and image), and a report of counts and conflicts.

    Raises:
        DataError: a cohort is empty, has fewer groups than folds, a role of a fold has no image, or no whole groups
            have the number of images that moves to the test.
    """
    if groups is None:
        groups = group_images(manifest, hamming=split.hamming, correlation=split.correlation, thumbnails=thumbnails)
    tables: list[pd.DataFrame] = []
    report: dict[str, Any] = {"groups": groups.report, "cohorts": {}}
    for name, cohort in cohorts.items():
        rows = members_of(manifest, cohort).merge(groups.table, on="image_id", how="left", validate="one_to_one")
        table, about = _split_cohort(name, rows, cohort, split, seed)
        tables.append(table)
        report["cohorts"][name] = about
    return pd.concat(tables, ignore_index=True)[COLUMNS], report


def _split_cohort(
    name: str, rows: pd.DataFrame, cohort: Cohort, split: Split, seed: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    fixed, why, conflicts = fixed_roles(rows, cohort)
    stays, taken = take(rows, cohort, fixed != "excluded", seed=seed, name=name)
    rows, fixed, why = rows[stays], fixed[stays], why[stays]
    moved, steps = moved_to_test(rows[fixed.isna()], cohort.moved_to_test, seed=seed, cohort=name)
    given = bool((fixed == "test").any())
    fixed[moved] = "test"
    free = rows[fixed.isna()]
    official = given or len(moved) > 0
    labels, names = free["label"].to_numpy(object), free["group_id"].to_numpy(object)
    if len(set(names)) < split.k:
        raise DataError(
            f"cohort {name} has {len(set(names))} groups of labelled {cohort.modality} images to divide, and split.k is"
            f" {split.k}: check its sets and labels, add data, or lower split.k"
        )
    fold_of = folds(labels, names, split.k, stream(seed, name))
    tables = []
    for fold in range(split.k):
        role = fixed.copy()
        role[free.index] = "train"
        held = free.index[fold_of == fold]
        if official:
            role[held] = "tune"
        else:
            role[held] = "test"
            rest = fold_of != fold
            chosen = share_of(labels[rest], names[rest], split.tune_share, stream(seed, name, fold))
            role[free.index[rest][chosen]] = "tune"
        missing = {"train", "tune", "test"} - set(role)
        if missing:
            raise DataError(
                f"cohort {name}, fold {fold}: no image is left for {', '.join(sorted(missing))}: add patients, or"
                f" change split.k and split.tune_share"
            )
        tables.append(rows[["image_id", "group_id"]].assign(cohort=name, fold=fold, role=role.astype(str)))
    table = pd.concat(tables, ignore_index=True)
    about: dict[str, Any] = {
        "images": len(rows),
        "groups": int(rows["group_id"].nunique()),
        "largest_group": int(rows.groupby("group_id").size().max()),
        "test": "official" if given else "moved" if official else "folds",
        "official_images": {str(k): int(v) for k, v in rows.groupby("official_split").size().items()},
        "excluded": {reason: int(count) for reason, count in why.dropna().groupby(why.dropna()).size().items()},
        "conflicts": conflicts,
        "taken": taken,
        "moved_to_test": steps,
        "folds": [_count(table[table["fold"] == fold], rows) for fold in range(split.k)],
    }
    about["warnings"] = _warnings(name, about, rows)
    return table, about


def _count(table: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Any]:
    """role -> images, groups, and images by label."""
    label = table["image_id"].map(rows.set_index("image_id")["label"]).fillna("unlabelled")
    counted = {}
    for role, mine in table.groupby("role"):
        by_label = label[mine.index].value_counts().sort_index()
        counted[str(role)] = {
            "images": len(mine),
            "groups": int(mine["group_id"].nunique()),
            "labels": {str(k): int(v) for k, v in by_label.items()},
        }
    return counted


def _warnings(name: str, about: dict[str, Any], rows: pd.DataFrame) -> list[str]:
    said = shortfalls(name, about["taken"])
    if about["conflicts"]["groups"]:
        said.append(
            f"Cohort {name}: {about['conflicts']['groups']} groups stand on two sides of the official split;"
            + (" what is not test was excluded." if about["test"] == "official" else " the folds keep them together.")
        )
    if about["test"] == "folds" and about["official_images"]:
        said.append(f"Cohort {name}: its official split has no test set, so the folds take its place.")
    number = len(about["folds"])
    for role in ("train", "tune", "test"):
        lacking = []
        for label in sorted(set(rows["label"].dropna())):
            without = sum(label not in counts[role]["labels"] for counts in about["folds"])
            if without:
                lacking.append(f"{label} (in {without} of {number} folds)")
        if lacking:
            said.append(f"Cohort {name}: role {role} lacks {', '.join(lacking)}.")
    return said


def write(
    manifest: Path,
    cohorts: Mapping[str, Cohort],
    split: Split,
    out: Path,
    *,
    seed: int,
    thumbnails: Thumbnails | None = None,
) -> None:
    """Write ``splits.parquet``, ``groups.parquet`` (image_id and group_id of all images) and ``splits.json``."""
    rows = read_parquet(manifest)
    groups = group_images(rows, hamming=split.hamming, correlation=split.correlation, thumbnails=thumbnails)
    splits, report = make_splits(rows, cohorts, split, seed=seed, groups=groups)
    write_parquet(out / "groups.parquet", groups.table[["image_id", "group_id"]])
    write_parquet(out / "splits.parquet", splits)
    write_json(out / "splits.json", report)
    print(f"{groups.report['images']} images in {groups.report['groups']} groups")
    for name, about in report["cohorts"].items():
        counts = ", ".join(f"{role} {n['images']}" for role, n in sorted(about["folds"][0].items()))
        print(f"{name}: {about['images']} images, fold 0: {counts}")
        for sentence in about["warnings"]:
            print(f"warning: {sentence}")
