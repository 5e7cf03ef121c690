"""CT volumes of which only grey values are left: 8-bit slices in a folder, or a NIfTI file of 0 to 255.

The Hounsfield units are gone. Where somebody states the window that the grey values were cut to, it is undone, which
gives the tissues within it back and leaves all beyond it at its ends; the manifest marks such volumes by their colour
mode, and validation warns of them. Names count slices from the head down, as scanners number them.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chestflow.imaging.images import Unreadable, Volume, require_depth
from chestflow.imaging.positions import even_step

ENDINGS = (".png", ".jpg", ".jpeg")
#: Millimetres that a chest CT spans along z, y and x where the files state no spacing: with it, resampling brings every
#: such volume to one size, whatever the number of its slices. Ours: a usual field of view, and lungs of 30 cm.
EXTENT_MM = (300.0, 360.0, 360.0)
_NUMBER = re.compile(r"(\d+)(?=\D*$)")


def grey_slices(folder: Path) -> list[Path]:
    """The pictures of a folder from the feet to the head, by the last number in their names.

    Raises:
        Unreadable: ``not_an_image`` where there are none; ``missing_tags`` for a name without a number;
            ``missing_slices`` and ``mixed_series`` where the numbers leave gaps or repeat.
    """
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
    ]
    if not found:
        raise Unreadable("not_an_image", "the folder holds neither DICOM slices nor pictures")
    numbered = []
    for path in found:
        match = _NUMBER.search(path.stem)
        if match is None:
            raise Unreadable("missing_tags", "a slice's name holds no number that would place it")
        numbered.append((int(match[1]), path))
    numbered.sort(key=lambda item: (item[0], item[1].name))
    if len(numbered) > 1:
        even_step(np.array([number for number, _ in numbered], dtype=np.float64))
    return [path for _, path in reversed(numbered)]


def from_grey(grey: NDArray, window: tuple[float, float]) -> NDArray[np.int16]:
    """Hounsfield units of grey values by the window that they were cut to.

    Args:
        grey: (D, H, W) in [0, 255].
        window: HU at 0 and at 255.

    Raises:
        Unreadable: ``wrong_modality`` for values beyond, or for one value alone.
    """
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 255:
        raise Unreadable("wrong_modality", f"grey values from {low} to {high}, where 0 to 255 were expected")
    if low == high:
        raise Unreadable("wrong_modality", f"every voxel is {low}: the volume is empty")
    table = np.rint(window[0] + np.arange(256) * ((window[1] - window[0]) / 255.0)).astype(np.int16)
    return table[grey.astype(np.uint8)]


def read_grey_volume(folder: Path, window: tuple[float, float]) -> Volume:
    """The 8-bit slices of a folder as a volume in the Hounsfield units that ``window`` gives back.

    Raises:
        Unreadable: as :func:`grey_slices`; ``mixed_series`` where sizes differ; ``unsupported`` for slices of more than
            8 bits; and what reading a picture raises, with the slice's number from the feet.
    """
    from chestflow.imaging.picture import read_picture

    files = grey_slices(folder)
    require_depth(len(files))
    grey: NDArray[np.uint8] | None = None
    kinds = set()
    for place, path in enumerate(files):
        try:
            picture = read_picture(path)
        except Unreadable as error:
            raise Unreadable(error.reason, f"slice {place + 1} of {len(files)}: {error.detail}") from None
        if picture.bits > 8:
            raise Unreadable("unsupported", f"slice {place + 1} of {len(files)} has {picture.bits} bits, not 8")
        if grey is None:
            grey = np.empty((len(files), *picture.pixels.shape), np.uint8)
        if picture.pixels.shape != grey.shape[1:]:
            raise Unreadable("mixed_series", "the slices differ in size: give one series a folder")
        grey[place] = picture.uint8()
        kinds.add(picture.file_format)
    assert grey is not None  # grey_slices refuses empty folders
    depth, height, width = (length / count for length, count in zip(EXTENT_MM, grey.shape, strict=True))
    kind = "png" if "png" in kinds else "jpeg"
    return Volume(from_grey(grey, window), (depth, height, width), kind, 8, color_mode="L", spacing_stated=False)
