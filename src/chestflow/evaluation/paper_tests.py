"""The papers' significance tests beside ours: which rows a paper says differ, and what our runs in their place say.

A paper's ``tests`` in its file of ``paper_figures`` name two printed rows, and where it says so the infection-ratio
groups in which they were compared. Ours are DeLong's paired test, clustered by patient, and the paired t-test over
folds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestflow.evaluation.cases import ratio_group, ratio_groups
from chestflow.evaluation.comparison import paired_delong, paired_t
from chestflow.evaluation.metrics import ranking
from chestflow.evaluation.reproduction import PAPER_CUTS, matches, paper_figures
from chestflow.files import read_parquet


def paper_tests(params: Any, out: Path) -> list[dict[str, Any]]:
    """Every stated test for which this profile has an entry in place of both rows, tested on the same images.

    Returns:
        Dicts with ``paper, first, second`` (the paper's rows), ``group`` (null for all images), ``stated`` (the printed
        p), ``ours`` (the two names), ``images``, ``difference`` (AUC of the first minus the second, with DeLong's
        interval), ``delong_p``, ``t`` (mean difference of the folds' AUCs), ``t_p`` and ``folds``.
    """
    names = [*params.runs, *params.ensembles]
    found = []
    for key, table in paper_figures().items():
        for test in table.get("tests", []):
            first, second = (
                [n for n in names if matches(table["rows"][test[which]].get("match"), key, n, params)]
                for which in ("first", "second")
            )
            about = {"paper": table["paper"], "first": test["first"], "second": test["second"], "stated": test["p"]}
            found += [
                {**about, "group": group, "ours": (one, other), **measured}
                for one in first
                for other in second
                for group, measured in _measured(one, other, test.get("groups"), params, out)
            ]
    return found


def _measured(
    one: str, other: str, groups: list[int] | None, params: Any, out: Path
) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Ours on all images, or in each of the groups; nothing where the two answered different images, or where our
    groups are cut elsewhere."""
    first, second = (
        read_parquet(out / "evaluate" / name / "cases.parquet").sort_values("image_id", ignore_index=True)
        for name in (one, other)
    )
    if first["image_id"].tolist() != second["image_id"].tolist() or first["task"].iloc[0] != second["task"].iloc[0]:
        return
    classes, cuts = list(params.task_of(one).classes), list(params.evaluate.ratio_cuts)
    if groups is None:
        yield None, _differences(first, second, classes)
    elif cuts == PAPER_CUTS:
        placed = first["ratio"].map(lambda r: ratio_group(r, cuts)).to_numpy(object)
        for name in (ratio_groups(cuts)[number] for number in groups):
            yield name, _differences(first[placed == name], second[placed == name], classes)


def _differences(first: pd.DataFrame, second: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    y = (first["target"] == len(classes) - 1).to_numpy()
    scores = [table[f"p_{classes[-1]}"].to_numpy(float) for table in (first, second)]
    test = paired_delong(y, scores[0], scores[1], first["patient_id"].to_numpy())
    folds = [(first["fold"] == fold).to_numpy() for fold in sorted(first["fold"].unique())]
    over = paired_t(*([_auc(y[fold], score[fold]) for fold in folds] for score in scores))
    return {
        "images": len(first), "difference": test["difference"].json(), "delong_p": test["p"],
        "t": over["difference"], "t_p": over["p"], "folds": over["folds"],
    }  # fmt: skip


def _auc(y: np.ndarray, score: np.ndarray) -> float:
    """NaN where a fold's part holds one class."""
    return float(ranking(y, score)[0][0]) if y.any() and not y.all() else float("nan")
