"""Mask files: one per image on its original grid, a bit each for lung, infection and what the source outlines.

Classifiers read the first two. The third is for judging where they looked, whoever made the infection bit; where it is
known (``outlined`` of ratio.parquet) it may be empty. Where a source draws boxes instead of outlines, the infection bit
fills them, and ratio.parquet says so. The same masks give the same bytes.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from chestflow.data.sources.base import Box
from chestflow.errors import DataError
from chestflow.files import atomic_path

LUNG = np.uint8(1)
INFECTION = np.uint8(2)
#: The infection as the image's source outlines it, no network's and no boxes: a truth, and never an input.
OUTLINED = np.uint8(4)
#: ``infection_from`` of a mask whose infection bit fills the source's boxes.
BOXES = "boxes"


def compose(
    lung: NDArray[np.bool_] | None, infection: NDArray[np.bool_] | None, outlined: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8] | None:
    """Bits of the masks, (H, W) or (D, H, W); None where all are unknown."""
    masks = ((lung, LUNG), (infection, INFECTION), (outlined, OUTLINED))
    known = [(mask, bit) for mask, bit in masks if mask is not None]
    if not known:
        return None
    bits = np.zeros(known[0][0].shape, dtype=np.uint8)
    for mask, bit in known:
        bits[mask] |= bit
    return bits


def from_boxes(boxes: Sequence[Box], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centres lie in one of the boxes.

    Args:
        boxes: (x, y, width, height) in pixels, from the left and upper edge; what sticks out is cut off.
        shape: (H, W).
    """
    inside = np.zeros(shape, dtype=bool)
    for x, y, width, height in boxes:
        left, top, right, bottom = (max(0, math.ceil(edge - 0.5)) for edge in (x, y, x + width, y + height))
        inside[top:bottom, left:right] = True
    return inside


def find(folder: Path, image_id: str) -> Path | None:
    """The mask file of an image, or None."""
    for ending in (".png", ".nii.gz"):
        path = folder / f"{image_id}{ending}"
        if path.exists():
            return path
    return None


def write(folder: Path, image_id: str, bits: NDArray[np.uint8], spacing_mm: tuple[float, ...] | None = None) -> Path:
    """Write (H, W) as PNG or (D, H, W) as NIfTI; lossless, fast compression, no time stamp.

    Args:
        folder: where masks lie.
        image_id: names the file.
        bits: values 0 to 7, in the readers' orientation.
        spacing_mm: (z, y, x) of a volume. Its origin is left at zero: the pair of image and mask is by image_id.
    """
    path = folder / f"{image_id}{'.png' if bits.ndim == 2 else '.nii.gz'}"
    if bits.ndim == 2:
        done, encoded = cv2.imencode(".png", bits, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if not done:
            raise DataError(f"the mask of image {image_id} could not be encoded")
        content = encoded.tobytes()
    else:
        import nibabel

        z, y, x = spacing_mm or (1.0, 1.0, 1.0)
        # NIfTI counts x towards the right and y towards the front; ours go left and back
        picture = nibabel.Nifti1Image(np.asfortranarray(bits.transpose(2, 1, 0)), np.diag([-x, -y, z, 1.0]))
        content = gzip.compress(picture.to_bytes(), 1, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def read(path: Path) -> NDArray[np.uint8]:
    """Bits as :func:`write` wrote them.

    Raises:
        DataError: the file is damaged.
    """
    name = path.name.split(".")[0]
    if path.suffix == ".png":
        bits = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if bits is None or bits.ndim != 2:
            raise DataError(f"the mask of image {name} is damaged: run the stage `segment` again")
        return bits.astype(np.uint8)
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        picture = nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
        return np.ascontiguousarray(np.asarray(picture.dataobj, dtype=np.uint8).transpose(2, 1, 0))
    except (EOFError, OSError, ValueError, ImageFileError):
        raise DataError(f"the mask of image {name} is damaged: run the stage `segment` again") from None
