"""Which part of a picture a recipe keeps: all, the lungs, all but the lungs, or the border, the rest being made black.

A network that still tells the classes when the lungs are gone has learned something else than the disease. Removing the
lungs by their outline leaves a hole of their shape, which says something itself; ``outside_box`` removes the smallest
box around them instead, of which only the place and the size remain.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

KEEP = ("all", "lungs", "outside_lungs", "outside_box", "border")
#: Without a lung mask nothing is known to belong there, so nothing is kept: a picture left whole would hide its lungs
#: among those that lost theirs.
NEED_LUNGS = ("lungs", "outside_lungs", "outside_box")
#: Width of the border on each side, as a share of the height and of the width.
BORDER = 0.1


def region(keep: str, shape: tuple[int, ...], lung: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """True where a picture or volume is kept.

    Args:
        keep: one of :data:`KEEP`.
        shape: (H, W) or (D, H, W); the border of a volume is that of each slice.
        lung: the lungs, of that shape; None or nowhere True where they are unknown.

    Returns:
        bool of that shape; nowhere True where ``keep`` needs lungs and there are none.

    Raises:
        ValueError: ``keep`` is none of these.
    """
    if keep not in KEEP:
        raise ValueError(f"keep is {keep!r}; it must be one of {', '.join(KEEP)}")
    if keep == "all":
        return np.ones(shape, dtype=bool)
    if keep == "border":
        ring = np.ones(shape, dtype=bool)
        down, right = (math.ceil(BORDER * size) for size in shape[-2:])
        ring[..., down : shape[-2] - down, right : shape[-1] - right] = False
        return ring
    if lung is None or not lung.any():
        return np.zeros(shape, dtype=bool)
    if keep == "lungs":
        return lung.copy()
    removed = lung
    if keep == "outside_box":
        from chestflow.imaging import regions  # late: it loads scipy, which packing workers can do without

        removed = np.zeros(shape, dtype=bool)
        removed[regions.slices(regions.bounding_box(lung))] = True
    return ~removed
