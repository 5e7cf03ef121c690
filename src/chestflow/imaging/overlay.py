"""A heat map over a grey picture, with the outline of the true lesion where it is known."""

from __future__ import annotations

import cv2
import numpy as np

LESION = (64, 224, 208)  # turquoise, RGB


def volume_slice(volume: np.ndarray, heat: np.ndarray, mask: np.ndarray | None) -> int:
    """The axial slice worth showing: the one with the most lesion, else the one with the most heat, else the middle.

    Args:
        volume: (D, H, W).
        heat: (D, H, W), in [0, 1].
        mask: bool (D, H, W) or None.
    """
    for weight in (mask, heat):
        if weight is not None and np.any(weight):
            return int(np.argmax(weight.reshape(len(volume), -1).sum(axis=1)))
    return len(volume) // 2


def window_uint8(hu: np.ndarray, level: float = -600.0, width: float = 1500.0) -> np.ndarray:
    """HU to uint8 by a window (paper 004: level -600, width 1500)."""
    return (np.clip((hu.astype(np.float32) - (level - width / 2)) / width, 0, 1) * 255).astype(np.uint8)


def blend(
    image: np.ndarray, heat: np.ndarray | None, lesion: np.ndarray | None = None, *, size: int = 320
) -> np.ndarray:
    """A picture for a person to look at.

    Args:
        image: uint8 (H, W).
        heat: (H, W) in [0, 1], or None for the picture alone.
        lesion: bool (H, W), outlined in turquoise; or None.
        size: longest side of the result in pixels.

    Returns:
        RGB uint8, aspect kept. Heat is transparent where it is low, so that the anatomy stays visible.
    """
    scale = size / max(image.shape)
    shape = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    grey = cv2.resize(image, shape, interpolation=cv2.INTER_LINEAR)
    picture = np.repeat(grey[..., None], 3, axis=2)
    if heat is not None:
        warm = cv2.resize(heat.astype(np.float32), shape, interpolation=cv2.INTER_LINEAR).clip(0, 1)
        colour = cv2.applyColorMap((warm * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
        alpha = (0.65 * warm)[..., None]
        picture = (picture * (1 - alpha) + colour * alpha).astype(np.uint8)
    if lesion is not None and lesion.any():
        mask = cv2.resize(lesion.astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        picture = np.ascontiguousarray(picture)
        cv2.drawContours(picture, outlines, -1, LESION, 1)
    return picture
