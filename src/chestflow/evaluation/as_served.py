"""Dual sampling as it is served: weighted by the infection ratio that its own segmenter finds (paper 004, II-D).

Tuning, the ensemble's predictions and its evaluation take w from the masks of the stage ``segment``, which are the
source's where it gives any. ``chestflow predict`` is given a volume without masks. So the test volumes that have masks
are also segmented by a network that did not see their group (``ratio_network`` of ratio.parquet), and the ensemble is
measured a second time with that w. The operating point is the ensemble's in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestflow.evaluation.calibration import operating_points, probabilities
from chestflow.evaluation.cases import columns, pool
from chestflow.evaluation.evidence import VIEWS, answers_of, gap, summary
from chestflow.segmentation import places

#: Probabilities are kept this far from 0 and 1, as where the ensemble's logits were made.
EPS = 1e-7


def as_served(name: str, params: Any, out: Path, cases: pd.DataFrame, classes: list[str]) -> dict[str, Any] | None:
    """Both measurements of a dual-sampling ensemble.

    Args:
        name: of a run or ensemble.
        params: the checked parameters.
        out: the folder of outs.
        cases: from :func:`chestflow.evaluation.cases.load`, test role.
        classes: of the task.

    Returns:
        ``images``; ``other_w``, how many of them get another w in any fold; ``unknown``, how many have no ratio by
        ``source`` and by ``network``; the figures of ``source`` and ``network`` at the operating point in use; and the
        AUC's ``network_minus_source``. None for all else, and where no segmenter of volumes was trained.
    """
    if name not in params.ensembles or params.ensembles[name].kind != "dual" or "w_network" not in cases:
        return None
    joined = params.ensembles[name]
    uniform, balanced = (answers_of(run, params, out, classes) for run in (joined.uniform, joined.balanced))
    tables = {
        which: _weighted(cases, uniform, balanced, column, name, out, classes)
        for which, column in (("source", "w"), ("network", "w_network"))
    }
    ratio = places.ratios(out, params.modality_of(name)).set_index("image_id").reindex(tables["source"]["image_id"])
    other = cases.loc[~np.isclose(cases["w"], cases["w_network"]), "image_id"]
    return {
        "images": len(ratio),
        "other_w": int(other.nunique()),
        "unknown": {"source": int(ratio["ratio"].isna().sum()), "network": int(ratio["ratio_network"].isna().sum())},
        **{which: summary(table, classes, VIEWS[2], params) for which, table in tables.items()},
        "network_minus_source": gap(tables["network"], tables["source"], classes),
    }


def _weighted(
    cases: pd.DataFrame,
    uniform: np.ndarray,
    balanced: np.ndarray,
    column: str,
    name: str,
    out: Path,
    classes: list[str],
) -> pd.DataFrame:
    """The pooled cases with the mixture's probabilities, raw and at the operating point in use."""
    w = cases[column].to_numpy(float)[:, None]
    mixed = w * uniform + (1 - w) * balanced
    table = cases.copy()
    table[columns("p", classes)] = mixed
    for fold in cases["fold"].unique():
        rows = (cases["fold"] == fold).to_numpy()
        _, served = operating_points(out / "tune" / "calibration" / name / f"{fold}.json")
        logits = np.log(np.clip(mixed[rows], EPS, 1 - EPS))  # softmax takes them for any logits of these probabilities
        table.loc[rows, columns("served", classes)] = probabilities(logits, served.temperature)
    return pool(table, classes)[0]
