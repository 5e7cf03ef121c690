"""PNG and JPEG, as radiographs and as masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chestflow.imaging.images import Radiograph, Unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg"}
#: Pillow's modes that hold more than 8 bits a pixel in one channel.
DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def open_picture(path: Path) -> Image:
    """Open a PNG or JPEG by its content and decode it whole.

    Raises:
        Unreadable: ``zero_size``, ``not_an_image``, ``truncated`` or ``unsupported``.
    """
    from PIL import Image as images
    from PIL import ImageOps, UnidentifiedImageError

    with open(path, "rb") as stream:
        head = stream.read(24)
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 24:
        width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        if not width or not height:
            raise Unreadable("zero_size", f"the picture is {width} x {height} pixels")
    try:
        picture = images.open(path)
    except UnidentifiedImageError:
        known = head.startswith((b"\x89PNG", b"\xff\xd8\xff"))
        raise Unreadable(
            "truncated" if known else "not_an_image",
            "the picture's header ends early" if known else "neither PNG, JPEG, DICOM nor NIfTI",
        ) from None
    except images.DecompressionBombError:
        raise Unreadable("unsupported", "the picture is larger than 178 million pixels") from None
    except (OSError, ValueError, SyntaxError):
        raise Unreadable("truncated", "the picture's header is damaged") from None
    if picture.format not in FORMATS:
        raise Unreadable("unsupported", f"{picture.format} pictures are not read: convert it to PNG")
    if getattr(picture, "n_frames", 1) > 1 and picture.format == "PNG":
        raise Unreadable("unsupported", "an animated picture")
    try:
        picture.load()
    except (OSError, ValueError, SyntaxError):  # Pillow raises each of them for damaged data
        raise Unreadable("truncated", "the picture's data end early or are damaged") from None
    # A camera's rotation tag counts as part of the picture, since every viewer honours it.
    return ImageOps.exif_transpose(picture) if picture.getexif().get(0x0112, 1) != 1 else picture


def read_picture(path: Path) -> Radiograph:
    """A PNG or JPEG as a radiograph: colours by luminance, transparency ignored, 16 bits over the range in use."""
    with open(path, "rb") as stream:
        jpeg = stream.read(2) == b"\xff\xd8"
    picture = open_picture(path)
    mode = picture.mode
    if mode in DEEP:
        pixels = np.asarray(picture).astype(np.float32)
        bits, low, high = 16, float(pixels.min()), float(pixels.max())
    else:
        pixels = np.asarray(picture if mode == "L" else picture.convert("L")).astype(np.float32)
        bits, low, high = (1 if mode == "1" else 8), 0.0, 255.0
    return Radiograph(pixels, bits, None, mode, "jpeg" if jpeg else "png", low, high)


def read_picture_mask(path: Path) -> NDArray[np.bool_]:
    """A mask picture, (H, W): inside is where any colour channel, or a palette's index, is above 0.

    Transparency is ignored, since a crop's is 255 everywhere; JPEG blurs edges, so there inside begins at half.
    """
    picture = open_picture(path)
    blurred = picture.format == "JPEG"
    if picture.mode in ("LA", "PA", "CMYK", "YCbCr"):
        picture = picture.convert("RGB")
    values = np.asarray(picture)
    floor = 127 if blurred and values.dtype == np.uint8 else 0
    channels = [values[..., i] for i in range(3)] if values.ndim == 3 else [values]  # a fourth is transparency
    inside = np.zeros(values.shape[:2], bool)
    for channel in channels:
        inside |= channel > floor
    return inside


def read_picture_values(path: Path) -> NDArray[np.uint8]:
    """A mask picture of classes, (H, W): the indices of a palette, or the values of its one channel.

    Raises:
        Unreadable: ``unsupported`` for colours, of which nobody says what they mean, and for JPEG, which blurs values.
    """
    picture = open_picture(path)
    if picture.format == "JPEG" or picture.mode not in ("P", "L", "1"):
        raise Unreadable("unsupported", "a mask of classes is a PNG with a palette or one channel of 8 bits")
    return np.asarray(picture).astype(np.uint8)
