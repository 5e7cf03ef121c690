"""Volumes in which no lungs were found: they neither train nor tune a network (paper 004 has no ratio for them).

A network for volumes learns on lungs alone, everything else set to air. Without a lung mask it would be shown the whole
body, which may come to stand for a class. Lungs are looked for on every CT volume, so an unknown mask says that the
segmenter, or the source's mask, was empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from chestflow.data.packs import Pack

#: Roles that such volumes leave. In the others a refusal counts them (:func:`chestflow.serving.abstention.verdict`).
LEAVES = ("train", "tune")


def without_lungless(roles: dict[str, pd.DataFrame], pack: Pack) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """The roles' tables without volumes whose lungs are empty, and how many were left out of each role.

    Pictures stay, whose lungs need not be known; so does everything in a pack that knows no lungs at all, in which
    networks see all of the body from the first volume to the last.

    Args:
        roles: with the column ``row``.
        pack: of those rows.
    """
    counts = dict.fromkeys(LEAVES, 0)
    known = pack.index.set_index("row")["has_lung"]
    if pack.recipe["modality"] != "ct_volume" or not known.any():
        return roles, counts
    kept = dict(roles)
    for role in LEAVES:
        has_lung = known.loc[roles[role]["row"].to_numpy()].to_numpy(bool)
        kept[role] = roles[role][has_lung].reset_index(drop=True)
        counts[role] = int((~has_lung).sum())
    return kept, counts
