"""NIfTI volumes and masks."""

from __future__ import annotations

import logging
from pathlib import Path
from zlib import error as ZlibError

import numpy as np
from numpy.typing import NDArray

from chestflow.imaging.images import Unreadable, Volume, require_hu, to_zyx

#: NIfTI's axes point right, front and head; DICOM's left, back and head.
_TO_DICOM = np.array([-1.0, -1.0, 1.0])


def _begins_well(path: Path) -> bool:
    """Whether the first bytes are those of gzip or of a NIfTI header (its own size, 348 or 540, in either order)."""
    with open(path, "rb") as stream:
        head = stream.read(4)
    return (
        head[:2] == b"\x1f\x8b" or {int.from_bytes(head, "little"), int.from_bytes(head, "big")} & {348, 540} != set()
    )


def load(path: Path) -> tuple[NDArray, tuple[float, float, float], int]:
    """Values (D, H, W) on the axes of :class:`~chestflow.imaging.images.Volume`, spacing (z, y, x) in mm, stored bits.

    Raises:
        Unreadable: ``zero_size``, ``not_an_image``, ``truncated``, ``nan_spacing`` or ``unsupported``.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    # nibabel repairs what it can and logs so; we refuse instead, and its messages hold paths.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    try:
        image = nibabel.load(path, mmap=False)
        shape = tuple(int(n) for n in image.header.get_data_shape())
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if 0 in shape:
            raise Unreadable("zero_size", f"the volume is {' x '.join(map(str, shape))} voxels")
        if len(shape) != 3:
            raise Unreadable("unsupported", f"a volume has 3 dimensions, this has {len(shape)}")
        steps = np.asarray(image.header["pixdim"][1:4], dtype=np.float64)
        if not np.isfinite(steps).all() or not np.isfinite(image.affine).all() or (steps == 0).any():
            raise Unreadable("nan_spacing", "a spacing in the header is zero or not a number")
        values = np.asanyarray(image.dataobj).reshape(shape)
    except (ImageFileError, HeaderDataError):
        if _begins_well(path):
            raise Unreadable("truncated", "the volume ends within its header, or the header is damaged") from None
        raise Unreadable("not_an_image", "not a NIfTI volume") from None
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ZlibError, ValueError):
        raise Unreadable("truncated", "the volume's data end early or are damaged") from None
    directions = image.affine[:3, :3].T * _TO_DICOM
    spacing = tuple(float(length) for length in np.linalg.norm(image.affine[:3, :3], axis=0))
    array, zyx = to_zyx(values, directions, spacing)
    return array, zyx, int(image.header["bitpix"])


def read_nifti(path: Path) -> Volume:
    """A CT volume in Hounsfield units; values beyond int16 are cut off.

    Raises:
        Unreadable: as :func:`load`; ``nan_pixels``; ``wrong_modality`` where nothing is as thin as air.
    """
    values, spacing, bits = load(path)
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all():
            raise Unreadable("nan_pixels", "the volume holds values that are not numbers")
        values = np.rint(values)
    if values.dtype.kind not in "iuf":
        raise Unreadable("unsupported", "the volume holds colours or complex numbers")
    if values.dtype != np.int16:
        values = values.clip(-32768, 32767).astype(np.int16)
    hu = np.ascontiguousarray(values)
    require_hu(hu)
    return Volume(hu, spacing, "nifti", bits)


def read_nifti_mask(path: Path) -> NDArray[np.bool_]:
    """A mask (D, H, W): inside is above 0."""
    return load(path)[0] > 0
