"""Reading one image, volume or mask from whatever file holds it; the format is told by content, not by name.

A path may be followed by what to take of it, see :mod:`chestflow.data.references`.
Every fault raises :class:`Unreadable` with a reason and a detail that names no file, so that both may be printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chestflow.data.references import LESIONS, Reference
from chestflow.imaging.images import REASONS, Radiograph, Unreadable, Volume, library_faults

__all__ = [
    "REASONS",
    "Radiograph",
    "Unreadable",
    "Volume",
    "kind",
    "read_classes",
    "read_mask",
    "read_radiograph",
    "read_volume",
]

#: HU at the ends of a slice's display range, where it is shown as a picture (paper 004: level -600, width 1500).
LUNG_WINDOW = (-1350.0, 150.0)
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
    """Read a PNG, JPEG or single-frame DICOM projection image, a CT slice stored as PNG or JPEG, or a volume's slice.

    Args:
        path: of the file; ``path@slice=K`` is slice K of a NIfTI volume, shown in the lung window.

    Raises:
        Unreadable: with a reason of :data:`REASONS`.
    """
    reference = Reference.parse(path)
    path = reference.path
    found = kind(path)
    if found == "nifti" and reference.slice is not None:
        from chestflow.imaging.nifti import read_nifti_slice

        with library_faults():
            return read_nifti_slice(path, reference.slice, LUNG_WINDOW)
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

    Args:
        path: of the file or folder; ``path@window=LOW,HIGH`` is one of grey values, 0 to 255, that a window was cut to.

    Raises:
        Unreadable: with a reason of :data:`REASONS`.
    """
    reference = Reference.parse(path)
    path = reference.path
    found = kind(path)
    if found == "nifti":
        from chestflow.imaging.nifti import read_nifti

        with library_faults():
            return read_nifti(path, reference.window)
    if found == "series" and reference.window is not None:
        from chestflow.imaging.grey_volume import read_grey_volume

        with library_faults():
            return read_grey_volume(path, reference.window)
    if found == "series":
        from chestflow.imaging.series import read_dicom_volume

        with library_faults():
            return read_dicom_volume(path)
    if found == "dicom":
        raise Unreadable("missing_slices", "a single DICOM slice: give the folder that holds the whole series")
    raise Unreadable("wrong_modality", "a single picture, where a volume is expected")


def _read_one_mask(reference: Reference) -> NDArray[np.bool_]:
    path = reference.path
    try:
        found = kind(path)
    except Unreadable:
        raise Unreadable("empty_mask", "the mask file is empty") from None
    with library_faults():
        if found == "nifti":
            from chestflow.imaging.nifti import read_nifti_values

            return _chosen(read_nifti_values(path, reference.slice), reference.values)
        if found == "picture":
            from chestflow.imaging.picture import read_picture_mask, read_picture_values

            if reference.values:
                return _chosen(read_picture_values(path), reference.values)
            return read_picture_mask(path)
    raise Unreadable("unsupported", "a mask must be NIfTI, PNG or JPEG")


def _chosen(values: NDArray, wanted: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where a mask has one of the wanted values; without any, where it is above 0."""
    inside: NDArray[np.bool_] = np.isin(np.rint(values), wanted) if wanted else values > 0
    return inside


def read_mask(paths: Sequence[str | Path], like_shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The union of masks on the grid of their image.

    Args:
        paths: mask references as in the manifest: a path, and what to take of it (a crop, a slice, some classes).
        like_shape: (H, W) or (D, H, W) of the image, as the readers give it.

    Raises:
        Unreadable: ``mask_size`` where a mask does not fit, ``empty_mask`` for an empty file, or as the readers.
    """
    union = np.zeros(like_shape, bool)
    for reference in paths:
        _place(_read_one_mask(Reference.parse(reference)), Reference.parse(reference), union)
    return union


def read_classes(paths: Sequence[str | Path], like_shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """What an infection mask shows, pixel by pixel.

    Args:
        paths: references of the manifest's column ``infection_mask``.
        like_shape: (H, W) or (D, H, W) of the image.

    Returns:
        uint8 of that shape: 0, or a number of :data:`chestflow.data.references.LESIONS`; where classes overlap, the
        highest. None where the source does not tell classes apart, so that a reference names none.

    Raises:
        Unreadable: as :func:`read_mask`.
    """
    references = [Reference.parse(reference) for reference in paths]
    if not references or any(reference.lesion not in LESIONS for reference in references):
        return None
    classes = np.zeros(like_shape, np.uint8)
    for reference in sorted(references, key=lambda reference: reference.lesion or 0):
        inside = np.zeros(like_shape, bool)
        _place(_read_one_mask(reference), reference, inside)
        classes[inside] = np.uint8(reference.lesion or 0)
    return classes


def _place(inside: NDArray[np.bool_], reference: Reference, union: NDArray[np.bool_]) -> None:
    """Add one mask to what is there."""
    if reference.resized:
        inside = _resized(inside, union.shape)
    if reference.corner is None:
        if inside.shape != union.shape:
            raise Unreadable("mask_size", f"the mask is {_size(inside.shape)}, its image {_size(union.shape)}")
        union |= inside
        return
    top, left = reference.corner
    if inside.ndim != union.ndim or inside.ndim != 2:
        raise Unreadable("mask_size", "a crop is for pictures only")
    bottom, right = top + inside.shape[0], left + inside.shape[1]
    if bottom > union.shape[0] + OVERHANG or right > union.shape[1] + OVERHANG:
        raise Unreadable("mask_size", f"a crop reaches ({bottom}, {right}), its image is {_size(union.shape)}")
    part = union[top:bottom, left:right]
    part |= inside[: part.shape[0], : part.shape[1]]


def _resized(inside: NDArray[np.bool_], like_shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask picture of the full image on the image's grid, by the nearest pixel."""
    if inside.ndim != 2 or len(like_shape) != 2:
        raise Unreadable("mask_size", "a mask of another resolution is for pictures only")
    import cv2

    return cv2.resize(inside.astype(np.uint8), like_shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT) > 0


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
