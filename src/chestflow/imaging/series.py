"""A CT series: a folder of DICOM slices, sorted and spaced by their positions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chestflow.imaging.dicom import frame, is_dicom, numbers, padding, read_header, rescale
from chestflow.imaging.images import LEAN, Unreadable, Volume, require_hu, to_zyx
from chestflow.imaging.positions import even_step, require_straight

AIR_HU = -1024
#: Numbers of headers may differ by rounding from slice to slice: spacing by this share (half a pixel over 512), cosines
#: of the plane by this much (a twentieth of a degree).
SPACING_SHARE, COSINE = 1e-3, 1e-3
_AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Series:
    """The slices of a folder in ascending order of position along the normal of their plane."""

    files: tuple[Path, ...]
    directions: NDArray[np.float64]  # (3, 3): of slices, rows and columns, in patient coordinates
    spacing_mm: tuple[float, float, float]  # slices, rows, columns
    series_uid: str | None
    study_uid: str | None
    sex: str | None
    age: str | None


def slices_of(folder: Path) -> list[Path]:
    """The DICOM files of a folder, in order of name; hidden files, DICOMDIR and files of other kinds are left out."""
    found = []
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name.startswith(".") or path.name.upper() == "DICOMDIR":
            continue
        if path.suffix.lower() in (".dcm", ".dicom", ".ima") or is_dicom(path):
            found.append(path)
    return found


def _same(headers: list[Any], tag: str) -> bool:
    return len({str(header.get(tag)) for header in headers}) == 1


def _close(headers: list[Any], tag: str, count: int, relative: float = 0.0, absolute: float = 0.0) -> bool:
    """Whether a tag's numbers are those of the first slice but for rounding, or missing in all slices."""
    found = [numbers(header, tag, count) for header in headers]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return not known
    return bool(np.isclose(np.array(known), np.array(known[0]), rtol=relative, atol=absolute).all())


def _positions(
    headers: list[Any], normal: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Millimetres along the normal, and the points that they come from.

    From ImagePositionPatient, else from SliceLocation, which ascends to the head, and then without points.
    """
    points = [numbers(header, "ImagePositionPatient", 3) for header in headers]
    if all(point is not None for point in points):
        found = np.array(points, dtype=np.float64)
        return found @ normal, found
    places = [numbers(header, "SliceLocation", 1) for header in headers]
    if all(place is not None for place in places):
        return np.array(places, dtype=np.float64)[:, 0], None
    raise Unreadable("missing_tags", "slices lack both ImagePositionPatient and SliceLocation")


def _require_untilted(header: Any) -> None:
    """Without points the gantry's tilt is known from its tag alone."""
    tilt = numbers(header, "GantryDetectorTilt", 1)
    if tilt is not None and abs(float(np.sin(np.radians(tilt[0])))) > LEAN:
        raise Unreadable("tilted", f"the gantry was tilted by {tilt[0]:g} degrees: straighten the series")


def read_series(folder: Path) -> Series:
    """Order a folder's slices and check that they form one complete series; pixels are not read.

    Raises:
        Unreadable: ``missing_slices``, ``mixed_series``, ``tilted``, ``wrong_modality``, ``missing_tags``,
            ``nan_spacing``, or what :func:`chestflow.imaging.dicom.read_header` raises for a slice.
    """
    files = slices_of(folder)
    if not files:
        raise Unreadable("not_an_image", "the folder holds no DICOM slices")
    headers = [read_header(path) for path in files]
    kinds = {str(header.get("Modality") or "CT").upper() for header in headers}
    if kinds != {"CT"}:
        raise Unreadable("wrong_modality", f"DICOM of modality {', '.join(sorted(kinds - {'CT'}))}, not CT")
    pairs = [(f, h) for f, h in zip(files, headers, strict=True) if "LOCALIZER" not in (h.get("ImageType") or ())]
    files, headers = [f for f, _ in pairs], [h for _, h in pairs]
    if len(files) < 2:
        raise Unreadable("missing_slices", f"a series needs at least 2 slices, this has {len(files)}")
    if any(int(header.get("NumberOfFrames") or 1) > 1 for header in headers):
        raise Unreadable("unsupported", "DICOM files with several frames")
    same = {tag: _same(headers, tag) for tag in ("SeriesInstanceUID", "Rows", "Columns")}
    same["PixelSpacing"] = _close(headers, "PixelSpacing", 2, relative=SPACING_SHARE)
    same["ImageOrientationPatient"] = _close(headers, "ImageOrientationPatient", 6, absolute=COSINE)
    for tag in same:
        if not same[tag]:
            raise Unreadable("mixed_series", f"{tag} differs between the slices: give one series a folder")
    first = headers[0]
    within = numbers(first, "PixelSpacing", 2)
    if within is None:
        raise Unreadable("missing_tags", "slices lack PixelSpacing")
    plane = np.array(numbers(first, "ImageOrientationPatient", 6) or _AXIAL)
    along_columns, along_rows = plane[:3], plane[3:]
    normal = np.cross(along_columns, along_rows)
    positions, points = _positions(headers, normal)
    order = np.argsort(positions, kind="stable")
    step = even_step(positions[order])
    if points is None:
        _require_untilted(first)
    else:
        require_straight(points[order], normal / np.linalg.norm(normal))
    return Series(
        tuple(files[i] for i in order),
        np.stack([normal, along_rows, along_columns]),
        (step, within[0], within[1]),
        *(str(first.get(tag)) if first.get(tag) else None for tag in ("SeriesInstanceUID", "StudyInstanceUID")),
        *(str(first.get(tag)) if first.get(tag) else None for tag in ("PatientSex", "PatientAge")),
    )


def _slice_hu(path: Path) -> NDArray[np.int16]:
    dataset = read_header(path, pixels=True)
    stored = frame(dataset)
    if stored.ndim != 2:
        raise Unreadable("wrong_modality", "a slice in colour")
    if dataset.get("RescaleIntercept") is None and not dataset.get("PixelRepresentation"):
        raise Unreadable("missing_tags", "unsigned slices without RescaleIntercept: no Hounsfield units")
    hu = np.rint(rescale(dataset, stored))
    hu[padding(dataset, stored)] = AIR_HU
    return hu.clip(-32768, 32767).astype(np.int16)


def stack(series: Series) -> Volume:
    """Read the slices of a series into a volume, one at a time.

    Raises:
        Unreadable: ``truncated`` and others, with the slice's number from the feet.
    """
    hu: NDArray[np.int16] | None = None
    for place, path in enumerate(series.files):
        try:
            plane = _slice_hu(path)
        except Unreadable as error:
            raise Unreadable(error.reason, f"slice {place + 1} of {len(series.files)}: {error.detail}") from None
        if hu is None:
            hu = np.empty((len(series.files), *plane.shape), np.int16)
        hu[place] = plane
    assert hu is not None  # read_series refuses empty folders
    array, spacing = to_zyx(hu, series.directions, series.spacing_mm)
    require_hu(array)
    return Volume(array, spacing, "dicom", 16)


def read_dicom_volume(folder: Path) -> Volume:
    """A folder of one CT series as a volume in Hounsfield units."""
    return stack(read_series(folder))
