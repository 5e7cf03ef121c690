"""Runs side by side in a terminal, as MLflow's page shows them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chestflow.tracking import store
from chestflow.tracking.runs import experiment_name

if TYPE_CHECKING:
    from chestflow.config import Params


@dataclass(frozen=True)
class Row:
    """A finished run."""

    name: str
    fold: str
    stage: str
    commit: str
    metrics: dict[str, float]

    def figure(self, metric: str) -> str:
        """``0.912 (0.850 to 0.960)``, without the interval where there is none; a dash where it is unknown."""
        value = self.metrics.get(metric, math.nan)
        if not math.isfinite(value):
            return "–"
        low, high = (self.metrics.get(f"{metric}_{end}") for end in ("lo", "hi"))
        return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def newest(params: Params) -> list[Row]:
    """The newest finished run of each name and fold in the profile's experiment, by name and fold.

    Raises:
        TrackingError: the store cannot be used.
    """
    client = store.connect()
    with store.clear_errors("searching runs"):
        experiment = client.get_experiment_by_name(experiment_name(params))
        if experiment is None:
            return []
        found = client.search_runs(
            [experiment.experiment_id], "attributes.status = 'FINISHED'", max_results=5000, order_by=["start_time ASC"]
        )
    rows = {}
    for run in found:
        tags = run.data.tags
        if "run" in tags:
            rows[tags["run"], tags.get("fold", "")] = Row(
                tags["run"],
                tags.get("fold", ""),
                tags.get("stage", ""),
                tags.get("git_commit", ""),
                dict(run.data.metrics),
            )
    return [rows[key] for key in sorted(rows)]
