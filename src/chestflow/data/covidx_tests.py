"""Larger tests from one list of images: COVIDx v1, v2 and v3 (AC-CovidNet, Table 1), each inside the next.

COVIDx5 tests on 100 images a class. The paper's v2 and v3 test on 150 and 200: 50 and 100 a class were moved over from
training, and which is not published. Here whole groups move (a patient, with all that shows the same picture), whose
images add to exactly the number asked for, step by step: cohorts that begin with the same steps have nested tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from chestflow.data.assignment import stream, whole_groups
from chestflow.errors import DataError

#: Images a class of COVIDx5's lists, by split.
COVIDX5 = {
    "train": {"normal": 7966, "pneumonia": 5475, "covid19": 517},
    "test": {"normal": 100, "pneumonia": 100, "covid19": 100},
}
#: Test images a class of the paper's configurations.
VERSIONS = {"v1": 100, "v2": 150, "v3": 200}


def moved_to_test(
    free: pd.DataFrame, steps: Sequence[Mapping[Any, int]], *, seed: int, cohort: str
) -> tuple[pd.Index, list[dict[str, Any]]]:
    """Choose the images that leave the folds for the test.

    The choice rests on the images, the steps and the seed, and not on the cohort's name.

    Args:
        free: rows that the folds would divide, with image_id, group_id and label, sorted by image_id.
        steps: label -> images, one mapping a step; each step draws from what those before it left.
        seed: of the draws.
        cohort: its name, for the error.

    Returns:
        Index of the rows that move, and for each step label -> images and groups.

    Raises:
        DataError: no whole groups of a label add to the number.
    """
    labels = free.groupby("group_id")["label"].nunique()
    # Moving a patient with two labels would change the number of the other as well.
    pure = free[free["group_id"].isin(labels.index[labels == 1])]
    moved, report = free.index[:0], []
    for place, step in enumerate(steps):
        done: dict[str, Any] = {}
        for label, number in step.items():
            left = pure[(pure["label"] == label) & ~pure.index.isin(moved)]
            sizes = left.groupby("group_id").size()
            chosen = whole_groups(np.asarray(sizes, np.intp), number, stream(seed, f"moved to test: {label}", place))
            taken = left.index[left["group_id"].isin(sizes.index[chosen])]
            if len(taken) != number:
                raise DataError(
                    f"cohort {cohort}: moved_to_test asks for {number} images of {label} in step {place + 1}, and whole"
                    f" groups of its {len(left)} images outside the test add to {len(taken)} at most: lower the number"
                    " or add patients"
                )
            moved = moved.union(taken)
            done[str(label)] = {"images": number, "groups": int(chosen.sum())}
        report.append(done)
    return moved, report
