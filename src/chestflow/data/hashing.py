"""Fingerprints of files and pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chestflow.files import sha256_file


def phash(pixels: NDArray[np.uint8]) -> str:
    """64-bit perceptual hash in 16 hex digits: signs of the lowest 8 x 8 cosine coefficients of a 32 x 32 thumbnail.

    Args:
        pixels: (H, W) in [0, 255].
    """
    import imagehash
    from PIL import Image

    return str(imagehash.phash(Image.fromarray(pixels), hash_size=8))


def hamming(a: str, b: str) -> int:
    """Number of bits in which two hashes differ."""
    return (int(a, 16) ^ int(b, 16)).bit_count()


def sha256_files(paths: Iterable[Path]) -> str:
    """Hex sha256 over the sha256 of each file, in the order given: the fingerprint of a series."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(sha256_file(path)))
    return digest.hexdigest()
