"""What the readers return, and the one error with which they refuse a file.

Details of an error never hold a name or a tag's value: both may identify a person.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from chestflow.errors import DataError

#: reason -> what it means; the vocabulary of `rejects.csv`.
REASONS: dict[str, str] = {
    "missing_file": "the set lists it, but the file is not there",
    "listed_twice": "the set lists the same file more than once, and an earlier line counts",
    "derived_copy": "an augmented copy of another image of the set",
    "zero_size": "the file or the picture in it has no extent",
    "not_an_image": "the content is no PNG, JPEG, DICOM or NIfTI",
    "truncated": "the content ends early or cannot be decoded",
    "wrong_modality": "it is another kind of image than the set says",
    "unsupported": "a variant that the readers do not handle",
    "missing_tags": "the DICOM header lacks what is needed to place or scale the pixels",
    "missing_slices": "the positions of a series leave gaps",
    "mixed_series": "the slices of a folder do not form one series",
    "tilted": "the slices are shifted against each other, as a tilted gantry leaves them",
    "nan_spacing": "a spacing or direction is not a positive, finite number",
    "nan_pixels": "a voxel is not a finite number",
    "empty_mask": "a mask file is empty",
    "mask_size": "a mask has another size than its image",
}


class Unreadable(DataError):
    """A file that cannot be used, with a reason of :data:`REASONS` and a detail free of names."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Unreadable], tuple[str, str]]:
        # Exceptions pickle by their message alone; workers must hand back both parts.
        return type(self), (self.reason, self.detail)


@contextmanager
def library_faults() -> Iterator[None]:
    """Turn whatever a decoder raises on damaged content into ``truncated``: no list of their exceptions is complete,
    and their texts may quote a header. Faults of the machine (no file, no permission, no memory) pass."""
    try:
        yield
    except (Unreadable, FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception:
        raise Unreadable("truncated", "the content is damaged") from None


@dataclass(frozen=True)
class Radiograph:
    """A projection image, or a CT slice that was stored as a picture.

    ``pixels`` is float32 (H, W) and bright where the body is dense (the sense of MONOCHROME2), after rescale and VOI;
    ``low`` and ``high`` are the ends of its display range.
    """

    pixels: NDArray[np.float32]
    bits: int  # as stored
    spacing_mm: tuple[float, float] | None  # (y, x); None where the file states none
    color_mode: str  # as stored: L | RGB | RGBA | I;16 ...
    file_format: str  # png | jpeg | dicom
    low: float = 0.0
    high: float = 255.0

    def uint8(self) -> NDArray[np.uint8]:
        """(H, W) in [0, 255] over the display range; 8-bit sources come back unchanged, a flat range as zeros."""
        if self.high <= self.low:
            return np.zeros(self.pixels.shape, np.uint8)
        scaled = (self.pixels - self.low) * (255.0 / (self.high - self.low))
        return np.rint(scaled).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Volume:
    """A CT volume. ``hu`` is int16 (D, H, W) in Hounsfield units; z ascends towards the head, y towards the back and
    x towards the patient's left. ``spacing_mm`` is (z, y, x), from positions."""

    hu: NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    file_format: str = "nifti"  # nifti | dicom | png | jpeg
    bits: int = 16  # as stored
    color_mode: str = "HU"  # L where grey values were mapped back to HU by a window
    spacing_stated: bool = True  # False where the files state none and one was assumed


#: Axes, or a stack of slices and their normal, may lean against each other by this: the sine of one degree.
LEAN = 0.0175

#: Which component of a DICOM patient direction (left, posterior, superior) each axis of a Volume follows.
_ZYX = (2, 1, 0)


def to_zyx(
    array: NDArray, directions: NDArray[np.float64], spacing_mm: tuple[float, ...]
) -> tuple[NDArray, tuple[float, float, float]]:
    """Turn and flip a volume onto the axes of :class:`Volume`, the nearest ones where it lies oblique.

    Args:
        array: (A, B, C) on any axes.
        directions: (3, 3); row ``a`` is the direction of axis ``a`` in DICOM patient coordinates (left, back, head).
        spacing_mm: per axis of ``array``.

    Raises:
        Unreadable: as :func:`axes_zyx`.
    """
    order, flipped = axes_zyx(directions, spacing_mm)
    array = array.transpose(order)
    z, y, x = (round(float(spacing_mm[axis]), 6) for axis in order)
    return np.ascontiguousarray(array[tuple(slice(None, None, -1 if flip else None) for flip in flipped)]), (z, y, x)


def axes_zyx(
    directions: NDArray[np.float64], spacing_mm: tuple[float, ...]
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Which stored axes become z, y and x, and which of these three run the other way.

    Args:
        directions: as :func:`to_zyx` takes them.
        spacing_mm: per stored axis.

    Raises:
        Unreadable: ``nan_spacing``; ``tilted`` where the axes are not at right angles (a sheared affine, or slices that
            a tilted gantry shifted): the grid would show a body that leans.
    """
    lengths = np.linalg.norm(directions, axis=1)
    if not (np.isfinite(directions).all() and np.isfinite(spacing_mm).all()) or min(*spacing_mm, *lengths) <= 0:
        raise Unreadable("nan_spacing", "a spacing or direction is zero, negative or not a number")
    unit = directions / lengths[:, None]
    lean = max(abs(float(unit[a] @ unit[b])) for a, b in ((0, 1), (0, 2), (1, 2)))
    if lean > LEAN:
        angle = float(np.degrees(np.arcsin(min(1.0, lean))))
        raise Unreadable(
            "tilted", f"the axes lean against each other by {angle:.1f} degrees: straighten the volume first"
        )
    order = max(permutations(range(3)), key=lambda axes: sum(abs(unit[a, p]) for a, p in zip(axes, _ZYX, strict=True)))
    return order, tuple(bool(unit[a, p] < 0) for a, p in zip(order, _ZYX, strict=True))


def require_hu(hu: NDArray[np.int16]) -> None:
    """Raise ``wrong_modality`` for a volume without air: a chest in Hounsfield units always holds some."""
    low = int(hu.min())
    if low > -200 and low == int(hu.max()):
        raise Unreadable("wrong_modality", f"every voxel is {low}: the volume is empty")
    if low > -200:
        raise Unreadable("wrong_modality", "no voxel below -200: not a chest CT in Hounsfield units")


def require_depth(depth: int) -> None:
    """Raise ``missing_slices`` for a volume of one slice: it has no thickness to resample, and is a picture."""
    if depth < 2:
        raise Unreadable("missing_slices", f"a volume needs at least 2 slices, this has {depth}")
