"""Where the slices of a series lie along their normal: one even step, without gaps and repeats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chestflow.imaging.images import LEAN, Unreadable

#: Steps between slices may differ by this share of their median before the series counts as incomplete or mixed.
TOLERANCE = 0.1
#: Or by this, in millimetres: headers round positions to a tenth.
ROUNDING = 0.11


def even_step(positions: NDArray[np.float64]) -> float:
    """The one distance between neighbouring slices.

    Args:
        positions: (N,), N of at least 2, ascending, in millimetres (or numbers in names).

    Raises:
        Unreadable: ``mixed_series`` where slices share a position or lie unevenly; ``missing_slices`` for gaps.
    """
    steps = np.diff(positions)
    step = float(np.median(steps))
    repeats = int(np.sum(steps < 1e-3))
    if repeats or step <= 0:
        raise Unreadable("mixed_series", f"{repeats} slices lie where another does: give one series a folder")
    slack = max(TOLERANCE * step, min(ROUNDING, 0.25 * step))
    if steps.min() < step - slack:
        short = int(np.sum(steps < step - slack))
        raise Unreadable(
            "mixed_series", f"{short} of {len(steps)} steps are shorter than the rest: several series in one"
        )
    if steps.max() > step + slack:
        gaps = int(np.sum(np.rint(steps / step) - 1)) or int(np.sum(steps > step + slack))
        raise Unreadable("missing_slices", f"{gaps} of {len(positions) + gaps} positions are empty")
    return float(positions[-1] - positions[0]) / len(steps)


def require_straight(points: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """Raise ``tilted`` where slices are shifted within their plane as one goes along the normal.

    A tilted gantry leaves such a stack: its slices lie above each other along the table and not along their normal, so
    that a grid of them shows a body that leans.

    Args:
        points: (N, 3) of the slices' first pixels in millimetres, in order.
        normal: (3,) of their plane, of length 1.
    """
    way = points - points[0]
    along = way @ normal
    aside = np.linalg.norm(way - np.outer(along, normal), axis=1)
    length = float(np.ptp(along))
    if aside.max() > LEAN * length + ROUNDING:
        angle = float(np.degrees(np.arctan2(aside.max(), length)))
        raise Unreadable(
            "tilted", f"slices are shifted against each other by up to {angle:.1f} degrees: straighten the series"
        )
