"""Letters burnt into pictures, from a bitmap font of our own: no font file, the same pixels everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Seven rows of five bits, the highest bit on the left.
GLYPHS: dict[str, tuple[int, ...]] = {
    "A": (14, 17, 17, 31, 17, 17, 17),
    "C": (14, 17, 16, 16, 16, 17, 14),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "P": (30, 17, 17, 30, 16, 16, 16),
    "R": (30, 17, 17, 30, 20, 18, 17),
    "X": (17, 17, 10, 4, 10, 17, 17),
    " ": (0, 0, 0, 0, 0, 0, 0),
}

#: The planted shortcut: a crossed box that no site uses.
SHORTCUT = "X"


def bitmap(text: str, scale: int = 1) -> NDArray[np.bool_]:
    """Rows of letters, 7 * scale pixels high and 6 * scale wide each.

    Raises:
        KeyError: a letter is not in the font.
    """
    letters = [
        np.pad(
            np.array([[row >> bit & 1 for bit in range(4, -1, -1)] for row in GLYPHS[letter]], bool), ((0, 0), (0, 1))
        )
        for letter in text
    ]
    return np.kron(np.hstack(letters), np.ones((scale, scale), dtype=bool)).astype(bool)


def burn(image: NDArray, text: str, top: int, left: int, value: float, scale: int = 1) -> None:
    """Set a text's pixels to ``value``, in place; a negative ``left`` counts from the right edge, likewise ``top``.

    Raises:
        ValueError: the text does not fit into the picture.
    """
    letters = bitmap(text, scale)
    height, width = letters.shape
    top = top if top >= 0 else image.shape[0] + top - height
    left = left if left >= 0 else image.shape[1] + left - width
    part = image[max(top, 0) : top + height, max(left, 0) : left + width]
    if part.shape != letters.shape:
        raise ValueError(f"{text!r} does not fit into a picture of {image.shape[1]} x {image.shape[0]} at this place")
    part[letters] = value
