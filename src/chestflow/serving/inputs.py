"""A file as a model's input, or the reason why the model should not answer for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chestflow.imaging.read import Radiograph, Unreadable, Volume, kind, read_radiograph, read_volume

#: What a model of each modality reads, for messages.
NAMES = {"cxr": "chest X-rays", "ct_slice": "CT slices", "ct_volume": "CT volumes"}
#: A grey picture stored in colour has channels that differ by rounding only; a photograph's differ by far more.
COLOUR_SPREAD = 12.0
#: A picture with this share of its pixels in one of 32 grey levels shows nothing.
BLANK_SHARE = 0.98
#: A volume of fewer slices shows no lung from top to bottom, whatever their thickness.
FEWEST_SLICES = 5
BLANK_DEVIATION = {"picture": 2.0, "volume": 20.0}  # grey values; Hounsfield units between air and bone


class Abstained(Exception):
    """The model should not answer: ``reason`` of :data:`chestflow.serving.abstention.REASONS`, and a detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def load(path: Path, modality: str) -> Radiograph | Volume:
    """Read a PNG, JPEG, DICOM or NIfTI file, or a folder of one DICOM series, for a model of one modality.

    Raises:
        FileNotFoundError: nothing is there.
        Unreadable: the file is damaged or of a kind that the readers do not handle.
        Abstained: ``wrong_modality`` or ``blank``.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(path.name)
    found = kind(path)
    if found == "series" and modality != "ct_volume":
        path, found = _only_file(path, modality)
    if modality == "ct_volume" and found == "picture":
        # read it first: a damaged file is damaged, whatever the model reads
        read_radiograph(path)
        raise Abstained("wrong_modality", "a single picture; this model reads CT volumes")
    if modality == "ct_volume" and found == "dicom":
        _require_ct(path)
    if modality != "ct_volume" and found == "nifti":
        raise Abstained("wrong_modality", f"a volume; this model reads {NAMES[modality]}")
    try:
        image = read_volume(path) if modality == "ct_volume" else read_radiograph(path)
    except Unreadable as error:
        if error.reason == "wrong_modality":
            raise Abstained("wrong_modality", f"{error.detail}; this model reads {NAMES[modality]}") from None
        raise
    if found == "picture" and _colourful(path):
        raise Abstained("wrong_modality", f"a colour photograph; this model reads {NAMES[modality]}")
    if isinstance(image, Volume) and len(image.hu) < FEWEST_SLICES:
        count = "one slice" if len(image.hu) == 1 else f"{len(image.hu)} slices"
        raise Abstained("wrong_modality", f"a volume of {count}; this model reads CT volumes of whole lungs")
    if is_blank(image):
        raise Abstained("blank", "the picture shows nothing: almost all of it has one grey value")
    return image


def _only_file(folder: Path, modality: str) -> tuple[Path, str]:
    """The single file of a folder that a viewer exported; a folder with more is a series."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    if len(files) == 1:
        return files[0], kind(files[0])
    if not files:
        raise Unreadable("zero_size", "the folder is empty")
    raise Abstained("wrong_modality", f"a folder of {len(files)} files; this model reads {NAMES[modality]}, one a file")


def _require_ct(path: Path) -> None:
    """Tell an X-ray given to a CT model from a slice without its series."""
    from chestflow.imaging.dicom import read_header

    found = str(read_header(path).get("Modality") or "").upper()
    if found and found != "CT":
        raise Abstained("wrong_modality", f"DICOM of modality {found}; this model reads CT volumes")


def _colourful(path: Path) -> bool:
    from chestflow.imaging.picture import open_picture

    picture = open_picture(path)
    if picture.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
        return False
    values = np.asarray(picture.convert("RGB").resize((64, 64)), dtype=np.float32)
    return float((values.max(axis=2) - values.min(axis=2)).mean()) > COLOUR_SPREAD


def is_blank(image: Radiograph | Volume) -> bool:
    """Whether nearly all of a picture is of one grey value, or a volume of one density."""
    if isinstance(image, Volume):
        return float(np.std(np.clip(image.hu[:: max(1, len(image.hu) // 32)], -1000, 400))) < BLANK_DEVIATION["volume"]
    grey = image.uint8()
    commonest = np.bincount(grey.ravel() >> 3, minlength=32).max() / grey.size
    return bool(commonest >= BLANK_SHARE or grey.std() < BLANK_DEVIATION["picture"])
