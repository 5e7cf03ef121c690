"""DICOM: single-frame radiographs. Series of CT slices are in :mod:`chestflow.imaging.series`.

Only the tags of :data:`TAGS` are looked at; names, dates and numbers that identify a person are never read out.
"""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chestflow.imaging.images import Radiograph, Unreadable, library_faults

#: Modality values of projection images (and of captured or unnamed ones), and those that are something else for sure.
NOT_PROJECTION = ("CT", "MR", "PT", "NM", "US", "MG", "OCT", "OP", "SR", "SEG", "RTSTRUCT", "RTDOSE", "KO", "PR")

#: What may be read from a header besides the pixels.
TAGS = (
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SliceLocation",
    "GantryDetectorTilt",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientSex",
    "PatientAge",
    "ViewPosition",
    "BitsStored",
    "TransferSyntaxUID",
)


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, or is named as DICOM and may lack the preamble."""
    with open(path, "rb") as stream:
        head = stream.read(132)
    if head[128:132] == b"DICM":
        return True
    group = int.from_bytes(head[:2], "little")
    return path.suffix.lower() in (".dcm", ".dicom", ".ima") and group in (0x0002, 0x0008)


def read_header(path: Path, pixels: bool = False) -> Any:
    """The dataset of one file, without its pixels unless asked for.

    Raises:
        Unreadable: ``zero_size``, ``not_an_image`` or ``truncated``.
    """
    import pydicom

    # pydicom's warnings quote the values that it finds odd, and those may be names.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    if path.stat().st_size == 0:
        raise Unreadable("zero_size", "the file is empty")
    if not is_dicom(path):
        raise Unreadable("not_an_image", "not a DICOM file")
    with warnings.catch_warnings(), library_faults():
        warnings.simplefilter("ignore")
        if pixels:
            dataset = pydicom.dcmread(path, force=True)
        else:
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(TAGS))
        rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if "Rows" not in dataset or "Columns" not in dataset:
        raise Unreadable("missing_tags", "the DICOM file holds no picture, or ends before it")
    if not rows or not columns:
        raise Unreadable("zero_size", f"the picture is {columns} x {rows} pixels")
    return dataset


def frame(dataset: Any) -> NDArray:
    """Stored values of a single-frame dataset, (H, W) or (H, W, 3), decompressed.

    Raises:
        Unreadable: ``truncated`` or ``unsupported``.
    """
    from pydicom.pixels import pixel_array

    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise Unreadable("unsupported", "a DICOM file with several frames")
    if "PixelData" not in dataset:
        raise Unreadable("truncated", "the DICOM file ends before its pixels")
    if not getattr(dataset.file_meta, "TransferSyntaxUID", None):
        from pydicom.uid import ImplicitVRLittleEndian

        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # the default of the standard
    defaults = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0}
    for name, value in (defaults | {"BitsStored": dataset.get("BitsAllocated")}).items():
        if dataset.get(name) is None and value is not None:
            setattr(dataset, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pixel_array(dataset)  # the function, unlike the property of this name, turns YBR into RGB
        except MemoryError:
            raise
        except Exception as error:  # decoders raise whatever their libraries do
            if "dependenc" in str(error) or isinstance(error, NotImplementedError):
                raise Unreadable("unsupported", "a DICOM compression that no decoder here handles") from None
            raise Unreadable("truncated", "the DICOM file's pixels end early or are damaged") from None


def numbers(dataset: Any, tag: str, count: int) -> tuple[float, ...] | None:
    """The numbers of a tag; None where it is missing or empty.

    Raises:
        Unreadable: ``nan_spacing`` where they are not numbers, or not as many.
    """
    value = dataset.get(tag)
    if value is None or value == "":
        return None
    try:
        found = tuple(float(part) for part in (value if count > 1 else [value]))
    except (TypeError, ValueError):
        found = ()
    if len(found) != count or not all(map(math.isfinite, found)):
        raise Unreadable("nan_spacing", f"{tag} does not hold {count} finite numbers")
    return found


def rescale(dataset: Any, stored: NDArray) -> NDArray[np.float32]:
    """Stored values to output units by the modality LUT, or rescale slope and intercept; unchanged without them."""
    from pydicom.pixels import apply_modality_lut

    return np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32)


def padding(dataset: Any, stored: NDArray) -> NDArray[np.bool_]:
    """Where the stored values say that there is no picture (PixelPaddingValue, up to its range limit)."""
    first = dataset.get("PixelPaddingValue")
    if first is None or not isinstance(first, int | float):
        return np.zeros(stored.shape, bool)
    last = dataset.get("PixelPaddingRangeLimit")
    last = first if last is None or not isinstance(last, int | float) else last
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _window(dataset: Any, values: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, float] | None:
    """Values after the VOI LUT or window (the first of several), with the ends of the display range; None without."""
    from pydicom.pixels import apply_voi_lut

    if dataset.get("VOILUTSequence"):
        table = dataset.VOILUTSequence[0]
        first_bits = table.LUTDescriptor
        shown = apply_voi_lut(values.astype(np.int64), dataset).astype(np.float32)
        return shown, 0.0, float(2 ** int(first_bits[2]) - 1)
    center, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    if center is None or width is None:
        return None
    try:
        c, w = (float(v if isinstance(v, int | float | str) else v[0]) for v in (center, width))
    except (TypeError, ValueError, IndexError):
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if not (math.isfinite(c) and math.isfinite(w)) or w < (1 if function == "LINEAR" else 1e-6):
        return None
    if function == "SIGMOID":  # PS3.3 C.11.2.1.3.1
        return (255.0 / (1.0 + np.exp(-4.0 * (values - c) / w))).astype(np.float32), 0.0, 255.0
    # PS3.3 C.11.2.1.2.1: LINEAR shifts by half a value, LINEAR_EXACT (C.11.2.1.3.2) does not.
    low, high = (c - 0.5 - (w - 1) / 2, c - 0.5 + (w - 1) / 2) if function == "LINEAR" else (c - w / 2, c + w / 2)
    shown = values.clip(low, high)
    if high <= low or (shown.min() == shown.max() and values.min() != values.max()):
        return None  # a window beside all values is a mistake of the header, not a blank picture
    return shown, low, high


def read_dicom_radiograph(path: Path) -> Radiograph:
    """One projection image: modality LUT, VOI LUT, MONOCHROME1 inverted, padding black, colours to luminance.

    Raises:
        Unreadable: see :func:`read_header` and :func:`frame`; ``wrong_modality`` for CT, MR and the like.
    """
    dataset = read_header(path, pixels=True)
    kind = str(dataset.get("Modality") or "").upper()
    if kind in NOT_PROJECTION:
        raise Unreadable("wrong_modality", f"DICOM of modality {kind}, not a projection image")
    stored = frame(dataset)
    bits = int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 8 * stored.dtype.itemsize)
    steps = numbers(dataset, "PixelSpacing", 2) or numbers(dataset, "ImagerPixelSpacing", 2)
    if steps is not None and min(steps) <= 0:
        raise Unreadable("nan_spacing", "the pixel spacing is not positive")
    spacing = (steps[0], steps[1]) if steps is not None else None
    if stored.ndim == 3:  # (H, W, 3)
        pixels = (stored[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.float32)
        return Radiograph(pixels, bits, spacing, "RGB", "dicom", 0.0, float(2**bits - 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = rescale(dataset, stored)
        empty = padding(dataset, stored)
        windowed = _window(dataset, values)
    if windowed is not None:
        values, low, high = windowed
    elif bits <= 8 and "RescaleSlope" not in dataset and "ModalityLUTSequence" not in dataset:
        low, high = 0.0, 255.0 if bits == 8 else float(2**bits - 1)
    else:
        shown = values[~empty] if empty.any() and not empty.all() else values
        low, high = float(shown.min()), float(shown.max())
    if str(dataset.get("PhotometricInterpretation") or "").upper() == "MONOCHROME1":
        values = low + high - values
    values = np.where(empty, np.float32(low), values) if empty.any() else values
    return Radiograph(values.astype(np.float32), bits, spacing, "L" if bits <= 8 else "I;16", "dicom", low, high)
