"""Cohorts assembled by counts: so many images of a label from a set, whole groups first (methods 001: datasets A to C).

What is not taken has no role in the cohort. A number that a set cannot give is reported, never passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from chestflow.data.assignment import stream, whole_groups

if TYPE_CHECKING:
    from chestflow.config import Cohort


def take(
    rows: pd.DataFrame, cohort: Cohort, candidate: pd.Series, *, seed: int, name: str
) -> tuple[pd.Series, dict[str, Any]]:
    """Choose the images of each set and label that a cohort asks for.

    Whole groups are chosen whose images add to the number exactly. Where none do, one group gives a part of its images:
    that keeps the number, and no side of a split is crossed, since the rest has no role.

    Args:
        rows: the cohort's members with group_id, sorted by image_id.
        cohort: its ``take``: set -> label -> number, or None for all.
        candidate: which rows can count: copies of other images, say, cannot.
        seed: of the choice.
        name: of the cohort; each draws from a stream of its own.

    Returns:
        Which rows stay, rows that were no candidates included; and set -> label -> asked, there, taken, split_groups.
    """
    stays = pd.Series(True, index=rows.index)
    report: dict[str, Any] = {}
    for source, labels in cohort.take.items():
        report[source] = {}
        for label, number in labels.items():
            offered = rows[candidate & (rows["source"] == source) & (rows["label"] == label)]
            chosen, cut = offered.index, 0
            if number is not None and number < len(offered):
                chosen, cut = _choose(offered, number, stream(seed, f"take {name} {source} {label}"))
                stays[offered.index.difference(chosen)] = False
            report[source][str(label)] = {
                "asked": number,
                "there": len(offered),
                "taken": len(chosen),
                "split_groups": cut,
            }
    return stays, report


def _choose(offered: pd.DataFrame, number: int, seed: int) -> tuple[pd.Index, int]:
    """Exactly ``number`` of the offered rows, and how many groups had to be cut for it (0 or 1)."""
    sizes = offered.groupby("group_id").size()
    whole = whole_groups(np.asarray(sizes, np.intp), number, seed)
    inside = offered["group_id"].isin(sizes.index[whole])
    missing = number - int(inside.sum())
    if missing:
        # Every group that is left is larger than what is missing, or it would have been chosen.
        cut = sizes.index[~whole][0]
        inside |= offered.index.isin(offered.index[offered["group_id"] == cut][:missing])
    return offered.index[inside], int(missing > 0)


def shortfalls(name: str, report: dict[str, Any]) -> list[str]:
    """A sentence for each number that a set could not give, and for each group that was cut."""
    said = []
    for source, labels in report.items():
        for label, counts in labels.items():
            if counts["asked"] is not None and counts["taken"] < counts["asked"]:
                said.append(
                    f"Cohort {name}: take asks for {counts['asked']} images of {label} from {source},"
                    f" which has {counts['there']} to give."
                )
            elif counts["there"] == 0:
                said.append(f"Cohort {name}: take asks for {label} from {source}, which has none to give.")
            if counts["split_groups"]:
                said.append(
                    f"Cohort {name}: of {label} from {source} one group gives a part of its images only, since no whole"
                    f" groups add to {counts['asked']}."
                )
    return said
