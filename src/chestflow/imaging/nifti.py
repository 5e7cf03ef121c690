"""NIfTI volumes and masks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from zlib import error as ZlibError

import numpy as np
from numpy.typing import NDArray

from chestflow.imaging.images import Radiograph, Unreadable, Volume, axes_zyx, require_hu, to_zyx

#: NIfTI's axes point right, front and head; DICOM's left, back and head.
_TO_DICOM = np.array([-1.0, -1.0, 1.0])


def _begins_well(path: Path) -> bool:
    """Whether the first bytes are those of gzip or of a NIfTI header (its own size, 348 or 540, in either order)."""
    with open(path, "rb") as stream:
        head = stream.read(4)
    return (
        head[:2] == b"\x1f\x8b" or {int.from_bytes(head, "little"), int.from_bytes(head, "big")} & {348, 540} != set()
    )


def _open(path: Path) -> tuple[Any, NDArray[np.float64], tuple[float, ...], tuple[int, int, int]]:
    """The image, its axes' directions in DICOM coordinates, their spacing, and its shape without trailing ones."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    # nibabel repairs what it can and logs so; we refuse instead, and its messages hold paths.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    try:
        image = nibabel.load(path, mmap=False)
    except (ImageFileError, HeaderDataError):
        if _begins_well(path):
            raise Unreadable("truncated", "the volume ends within its header, or the header is damaged") from None
        raise Unreadable("not_an_image", "not a NIfTI volume") from None
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ZlibError, ValueError):
        raise _damaged() from None
    header: Any = image.header
    affine: NDArray[np.float64] = image.affine
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if 0 in shape:
        raise Unreadable("zero_size", f"the volume is {' x '.join(map(str, shape))} voxels")
    if len(shape) != 3:
        raise Unreadable("unsupported", f"a volume has 3 dimensions, this has {len(shape)}")
    steps = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(steps).all() or not np.isfinite(affine).all() or (steps == 0).any():
        raise Unreadable("nan_spacing", "a spacing in the header is zero or not a number")
    spacing = tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return image, affine[:3, :3].T * _TO_DICOM, spacing, shape


def _damaged() -> Unreadable:
    return Unreadable("truncated", "the volume's data end early or are damaged")


def load(path: Path) -> tuple[NDArray, tuple[float, float, float], int]:
    """Values (D, H, W) on the axes of :class:`~chestflow.imaging.images.Volume`, spacing (z, y, x) in mm, stored bits.

    Raises:
        Unreadable: ``zero_size``, ``not_an_image``, ``truncated``, ``nan_spacing``, ``tilted`` or ``unsupported``.
    """
    image, directions, spacing, shape = _open(path)
    axes_zyx(directions, spacing)  # before the voxels are read
    try:
        values = np.asanyarray(image.dataobj).reshape(shape)
    except (OSError, EOFError, ZlibError, ValueError):
        raise _damaged() from None
    array, zyx = to_zyx(values, directions, spacing)
    return array, zyx, int(image.header["bitpix"])


def load_slice(path: Path, place: int) -> tuple[NDArray, tuple[float, float], int]:
    """One slice (H, W) of :func:`load`, spacing (y, x) in mm and stored bits; the others are not kept in memory.

    Raises:
        Unreadable: as :func:`load`; ``missing_slices`` where the volume has no such slice.
    """
    image, directions, spacing, shape = _open(path)
    order, flipped = axes_zyx(directions, spacing)
    depth = shape[order[0]]
    if place >= depth:
        raise Unreadable("missing_slices", f"slice {place} is asked for, the volume ends at {depth - 1}")
    where: list[slice | int] = [slice(None)] * 3
    where[order[0]] = depth - 1 - place if flipped[0] else place
    try:
        plane = np.asanyarray(image.dataobj[(*where, *(0 for _ in image.shape[3:]))])
    except (OSError, EOFError, ZlibError, ValueError):
        raise _damaged() from None
    if order[1] > order[2]:
        plane = plane.T
    plane = plane[tuple(slice(None, None, -1 if flip else None) for flip in flipped[1:])]
    return np.ascontiguousarray(plane), (spacing[order[1]], spacing[order[2]]), int(image.header["bitpix"])


def _int16(values: NDArray) -> NDArray[np.int16]:
    """Finite numbers as int16, rounded and cut off."""
    if values.dtype.kind not in "iuf":
        raise Unreadable("unsupported", "the volume holds colours or complex numbers")
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all():
            raise Unreadable("nan_pixels", "the volume holds values that are not numbers")
        values = np.rint(values)
    if values.dtype != np.int16:
        values = values.clip(-32768, 32767).astype(np.int16)
    return np.ascontiguousarray(values)


def read_nifti(path: Path, window: tuple[float, float] | None = None) -> Volume:
    """A CT volume in Hounsfield units; values beyond int16 are cut off.

    Args:
        path: the file.
        window: HU that the grey values 0 and 255 stand for; None where the file holds HU.

    Raises:
        Unreadable: as :func:`load`; ``nan_pixels``; ``wrong_modality`` where nothing is as thin as air, or where grey
            values go beyond 0 to 255.
    """
    values, spacing, bits = load(path)
    hu = _int16(values)
    if window is not None:
        from chestflow.imaging.grey_volume import from_grey

        return Volume(from_grey(hu, window), spacing, "nifti", bits, color_mode="L")
    require_hu(hu)
    return Volume(hu, spacing, "nifti", bits)


def read_nifti_slice(path: Path, place: int, window: tuple[float, float]) -> Radiograph:
    """One slice of a volume as a picture, whose display range is ``window`` in HU.

    Raises:
        Unreadable: as :func:`load_slice`; ``nan_pixels``.
    """
    values, spacing, bits = load_slice(path, place)
    pixels = _int16(values).astype(np.float32)
    return Radiograph(pixels, bits, spacing, "HU", "nifti", *window)


def read_nifti_values(path: Path, place: int | None = None) -> NDArray:
    """What a mask file holds, (D, H, W), or (H, W) of one slice."""
    return load(path)[0] if place is None else load_slice(path, place)[0]
