"""How far an optimum found on a few patients can be trusted: its spread over resamples, and its gain out of the bag.

A value tuned on some patients looks better on them than it is. So a tuned value is compared with the paper's on the
patients that a resample left out (about 37%), after tuning on those that it drew; the interval is wide, and the paper's
value stays unless it excludes zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chestflow.evaluation.intervals import Value, percentile_interval


def out_of_bag(weights: NDArray) -> NDArray[np.float32]:
    """1 where a resample left the image's patient out, else 0; of the shape of ``weights``, (R, N)."""
    return (weights == 0).astype(np.float32)


def spread(values: NDArray) -> dict[str, Any]:
    """Median, 2.5th and 97.5th percentile and deviation of an optimum over resamples (R,)."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return {"median": None, "lo": None, "hi": None, "sd": None, "resamples": len(values)}
    lo, median, hi = np.percentile(values, [2.5, 50, 97.5])
    sd = float(values.std(ddof=1))
    return {"median": float(median), "lo": float(lo), "hi": float(hi), "sd": sd, "resamples": len(values)}


def gain(differences: NDArray, n: int) -> Value:
    """Mean out-of-bag gain of the tuned value over the paper's, with its percentile interval.

    Args:
        differences: (R,), above 0 where the tuned value is better.
        n: images of the tune role.
    """
    finite = differences[np.isfinite(differences)]
    value = float(finite.mean()) if len(finite) else float("nan")
    return percentile_interval(value, differences, n, reason="no resample left out patients of both classes")


def chosen(value: Value) -> str:
    """``tuned`` where the interval of the gain lies above zero, else ``paper``."""
    return "tuned" if value.lo > 0 else "paper"
