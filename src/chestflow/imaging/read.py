"""Reading one image, volume or mask from whatever file holds it; the format is told by content, not by name.

Every fault raises :class:`Unreadable` with a reason and a detail that names no file, so that both may be printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chestflow.data.sources.base import RESIZED, parse_mask_reference
from chestflow.imaging.images import REASONS, Radiograph, Unreadable, Volume, library_faults

__all__ = ["REASONS", "Radiograph", "Unreadable", "Volume", "kind", "read_mask", "read_radiograph", "read_volume"]

#: A crop may stick out of its image by this many pixels: annotation tools round outwards.
OVERHANG = 2


def kind(path: Path) -> str:
    """What a path holds: ``picture`` (PNG, JPEG and others that Pillow knows), ``dicom``, ``nifti`` or ``series``.

    Raises:
        FileNotFoundError: nothing is there.
        Unreadable: ``zero_size`` for an empty file.
    """
    path = Path(path)
    if path.is_dir():
        return "series"
    with open(path, "rb") as stream:
        head = stream.read(352)
    if not head:
        raise Unreadable("zero_size", "the file is empty")
    if path.name.lower().endswith((".nii", ".nii.gz")) or head[344:347] in (b"n+1", b"ni1") or head[4:7] == b"n+2":
        return "nifti"
    from chestflow.imaging.dicom import is_dicom

    return "dicom" if is_dicom(path) else "picture"


def read_radiograph(path: Path) -> Radiograph:
    """Read a PNG, JPEG or single-frame DICOM projection image, or a CT slice stored as PNG or JPEG.

    Raises:
        Unreadable: with a reason of :data:`REASONS`.
    """
    path = Path(path)
    found = kind(path)
    if found == "picture":
        from chestflow.imaging.picture import read_picture

        with library_faults():
            return read_picture(path)
    if found == "dicom":
        from chestflow.imaging.dicom import read_dicom_radiograph

        with library_faults():
            return read_dicom_radiograph(path)
    raise Unreadable("wrong_modality", "a volume, where a single picture is expected")


def read_volume(path: Path) -> Volume:
    """Read a NIfTI file or a folder of one DICOM series, in Hounsfield units.

    Raises:
        Unreadable: with a reason of :data:`REASONS`.
    """
    path = Path(path)
    found = kind(path)
    if found == "nifti":
        from chestflow.imaging.nifti import read_nifti

        with library_faults():
            return read_nifti(path)
    if found == "series":
        from chestflow.imaging.series import read_dicom_volume

        with library_faults():
            return read_dicom_volume(path)
    if found == "dicom":
        raise Unreadable("missing_slices", "a single DICOM slice: give the folder that holds the whole series")
    raise Unreadable("wrong_modality", "a single picture, where a volume is expected")


def _read_one_mask(path: Path) -> NDArray[np.bool_]:
    try:
        found = kind(path)
    except Unreadable:
        raise Unreadable("empty_mask", "the mask file is empty") from None
    if found == "nifti":
        from chestflow.imaging.nifti import read_nifti_mask

        with library_faults():
            return read_nifti_mask(path)
    if found == "picture":
        from chestflow.imaging.picture import read_picture_mask

        with library_faults():
            return read_picture_mask(path)
    raise Unreadable("unsupported", "a mask must be NIfTI, PNG or JPEG")


def read_mask(paths: Sequence[str | Path], like_shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The union of masks on the grid of their image.

    Args:
        paths: mask references as in the manifest: a path, ``path@top,left`` for a crop that lies there, or
            ``path@resized`` (see :func:`chestflow.data.sources.base.mask_reference`).
        like_shape: (H, W) or (D, H, W) of the image, as the readers give it.

    Raises:
        Unreadable: ``mask_size`` where a mask does not fit, ``empty_mask`` for an empty file, or as the readers.
    """
    union = np.zeros(like_shape, bool)
    for reference in paths:
        path, corner = parse_mask_reference(str(reference))
        inside = _read_one_mask(path)
        if str(reference).endswith(RESIZED):
            inside = _resized(inside, like_shape)
        if corner is None:
            if inside.shape != union.shape:
                raise Unreadable("mask_size", f"the mask is {_size(inside.shape)}, its image {_size(like_shape)}")
            union |= inside
            continue
        top, left = corner
        if inside.ndim != union.ndim or inside.ndim != 2:
            raise Unreadable("mask_size", "a crop is for pictures only")
        bottom, right = top + inside.shape[0], left + inside.shape[1]
        if bottom > union.shape[0] + OVERHANG or right > union.shape[1] + OVERHANG:
            raise Unreadable("mask_size", f"a crop reaches ({bottom}, {right}), its image is {_size(like_shape)}")
        part = union[top:bottom, left:right]
        part |= inside[: part.shape[0], : part.shape[1]]
    return union


def _resized(inside: NDArray[np.bool_], like_shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask picture of the full image on the image's grid, by the nearest pixel."""
    if inside.ndim != 2 or len(like_shape) != 2:
        raise Unreadable("mask_size", "a mask of another resolution is for pictures only")
    import cv2

    return cv2.resize(inside.astype(np.uint8), like_shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT) > 0


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
