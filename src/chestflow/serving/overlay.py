"""The picture that goes with an answer: where the network looked, what it said, and whose training it is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from chestflow.files import atomic_path
from chestflow.imaging.images import Volume
from chestflow.imaging.overlay import blend, volume_slice, window_uint8

if TYPE_CHECKING:
    from chestflow.data.recipes import Geometry
    from chestflow.imaging.images import Radiograph
    from chestflow.serving.answer import Answer

SIZE = 480
LINE = 22
RED, WHITE = (200, 30, 30), (255, 255, 255)


def full_heat(heat: np.ndarray, geometry: Geometry, packed: tuple[int, ...]) -> np.ndarray:
    """A network's small map on the picture's original grid, in [0, 1].

    Args:
        heat: (h, w) or (d, h, w).
        geometry: of the recipe's resampling.
        packed: shape of the recipe's grid.
    """
    import torch

    from chestflow.data.recipes import restore
    from chestflow.imaging.cam import upsample

    grid = upsample(torch.as_tensor(heat, dtype=torch.float32)[None, None], packed)[0, 0].numpy()
    return restore(grid, geometry).clip(0, 1)


def render(answer: Answer, image: Radiograph | Volume, full: np.ndarray | None) -> np.ndarray:
    """RGB uint8: the picture, its overlay beside it, and lines of text above; the notice in red.

    Of a volume the axial slice with the most heat is shown. ``full`` is the heat on the original grid, in [0, 1].
    """
    if isinstance(image, Volume):
        z = volume_slice(image.hu, full if full is not None else np.zeros(image.hu.shape, np.float32), None)
        grey, shown = window_uint8(image.hu[z]), None if full is None else full[z]
    else:
        grey, shown = image.uint8(), full
    pair = np.concatenate([blend(grey, None, size=SIZE), blend(grey, shown, size=SIZE)], axis=1)
    spread = "" if answer.low is None else f" ({answer.low:.2f} to {answer.high:.2f})"
    cut = "most probable class" if answer.threshold is None else f"threshold {answer.threshold:.3f}"
    lines = [
        f"{answer.label}   p(covid19) {answer.probability:.3f}{spread}   {cut}",
        f"{answer.model}   no medical device",
    ]
    banner = np.zeros((LINE * (len(lines) + bool(answer.notice)) + 8, pair.shape[1], 3), np.uint8)
    row = 0
    if answer.notice:
        banner[: LINE + 4] = RED
        _text(banner, answer.notice, row)
        row += 1
    for line in lines:
        _text(banner, line, row)
        row += 1
    return np.concatenate([banner, pair], axis=0)


def _text(picture: np.ndarray, line: str, row: int) -> None:
    place, font = (8, LINE * (row + 1) - 4), cv2.FONT_HERSHEY_SIMPLEX
    (width, _), _ = cv2.getTextSize(line, font, 0.5, 1)
    scale = 0.5 * min(1.0, (picture.shape[1] - 16) / max(1, width))
    cv2.putText(picture, line, place, font, scale, WHITE, 1, cv2.LINE_AA)


def write(path: Path, answer: Answer, image: Radiograph | Volume, full: np.ndarray | None) -> None:
    """Write :func:`render`'s picture as PNG."""
    done, encoded = cv2.imencode(".png", render(answer, image, full)[..., ::-1])
    if not done:
        raise OSError(f"the overlay {path.name} could not be encoded")
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
