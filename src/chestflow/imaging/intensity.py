"""Contrast-limited adaptive histogram equalisation. Windows and z-scores are the networks' input layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chestflow.errors import DataError


def clahe(pixels_uint8: NDArray[np.uint8], clip: float = 4.0, tiles: int = 4) -> NDArray[np.uint8]:
    """Equalise the histogram in ``tiles`` x ``tiles`` regions, as paper 001's code does (clip 4, 4 x 4).

    Args:
        pixels_uint8: (H, W) in [0, 255].
        clip: limit of contrast, as a multiple of a flat histogram's bin.

    Raises:
        DataError: the array is not a two-dimensional uint8 one, or smaller than a pixel a tile.
    """
    import cv2

    if pixels_uint8.dtype != np.uint8 or pixels_uint8.ndim != 2:
        raise DataError(f"CLAHE takes (H, W) uint8, got {pixels_uint8.shape} {pixels_uint8.dtype}")
    if min(pixels_uint8.shape) < tiles:
        raise DataError(f"CLAHE with {tiles} tiles a side needs a picture at least as large, got {pixels_uint8.shape}")
    equalised = cv2.createCLAHE(clipLimit=clip, tileGridSize=(tiles, tiles)).apply(np.ascontiguousarray(pixels_uint8))
    return np.asarray(equalised, dtype=np.uint8)
