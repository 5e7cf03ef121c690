"""Which images show the same picture: near perceptual hashes, confirmed on thumbnails.

A perceptual hash alone chains whole sets together, since all chests look alike to it; so hashes only propose pairs, and
the correlation of two 32 x 32 thumbnails decides. Volumes have no such hash and are never compared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.parallel import ordered_map

HAMMING = 4
CORRELATION = 0.99
SIDE = 32
#: A hash is thresholded at its median, so about half of its 64 bits are set. One with fewer than this many is that of a
#: blank picture, which resembles every other blank one.
FEWEST_BITS = 8

Pairs = tuple[NDArray[np.intp], NDArray[np.intp]]
#: Takes rows with image_id and path, gives their thumbnails (N, 32, 32) in the order of the rows.
Thumbnails = Callable[[pd.DataFrame], NDArray[np.float32]]


def near_hashes(hashes: NDArray[np.uint64], hamming: int) -> Pairs:
    """All pairs of distinct 64-bit hashes that differ in at most ``hamming`` bits.

    Pigeonhole: of hamming + 1 blocks of bits, two such hashes agree on at least one, so only hashes that share a
    block are compared. Cost grows with the pairs that share a block, not with the square of the number of hashes;
    memory with the number of hashes.

    Args:
        hashes: (N,), all different.
        hamming: from 0 to 64.

    Returns:
        Row numbers (first, second), each pair once.
    """
    found: list[Pairs] = []
    for bits in np.array_split(np.arange(64, dtype=np.uint64), hamming + 1):
        mask = np.bitwise_or.reduce(np.uint64(1) << bits) if len(bits) else np.uint64(0)
        keys = hashes & mask
        order = np.argsort(keys, kind="stable")
        keys, left = keys[order], np.arange(len(order))
        # Sorted by block, the partners of row t stand at t + 1, t + 2, … until the block changes.
        for step in range(1, len(order)):
            left = left[left + step < len(order)]
            left = left[keys[left] == keys[left + step]]
            if not len(left):
                break
            a, b = order[left], order[left + step]
            near = np.bitwise_count(hashes[a] ^ hashes[b]) <= hamming
            found.append((np.minimum(a, b)[near], np.maximum(a, b)[near]))
    if not found:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    pairs = np.unique(np.stack([np.concatenate(side) for side in zip(*found, strict=True)], axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def candidates(manifest: pd.DataFrame, hamming: int = HAMMING) -> Pairs:
    """Pairs of rows of one modality whose hashes are at most ``hamming`` bits apart; rows without a hash have none."""
    bits = manifest["phash"].map(lambda text: int(text, 16) if isinstance(text, str) else 0)
    hashes = bits.to_numpy().astype(np.uint64)
    usable = np.flatnonzero(np.bitwise_count(hashes) >= FEWEST_BITS)
    distinct, member_of = np.unique(hashes[usable], return_inverse=True)
    a, b = near_hashes(distinct, hamming)
    each = np.arange(len(distinct))
    links = pd.DataFrame({"a": np.concatenate([each, a]), "b": np.concatenate([each, b])})
    members = pd.DataFrame({"hash": member_of, "row": usable})
    joined = links.merge(members, left_on="a", right_on="hash").merge(members, left_on="b", right_on="hash")
    # Pairs of two hashes appear once; pairs within one hash appear twice, and each row with itself.
    joined = joined[(joined["a"] != joined["b"]) | (joined["row_x"] < joined["row_y"])]
    first, second = joined["row_x"].to_numpy(np.intp), joined["row_y"].to_numpy(np.intp)
    modality = manifest["modality"].to_numpy()
    same = modality[first] == modality[second]
    return np.minimum(first, second)[same], np.maximum(first, second)[same]


def same_pictures(
    manifest: pd.DataFrame,
    pairs: Pairs,
    *,
    correlation: float = CORRELATION,
    thumbnails: Thumbnails | None = None,
) -> Pairs:
    """The proposed pairs that are confirmed by the correlation of their thumbnails.

    Args:
        manifest: rows with image_id and path.
        pairs: as of :func:`candidates`, or some of them.
        correlation: Pearson's, at least this.
        thumbnails: where they come from; None reads the files.

    Raises:
        DataError: an image cannot be read any more (named by image_id).
    """
    first, second = pairs
    if not len(first):
        return pairs
    needed, place = np.unique(np.concatenate(pairs), return_inverse=True)
    flat = (thumbnails or read_thumbnails)(manifest.iloc[needed]).reshape(len(needed), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    flat /= np.where(length > 0, length, np.inf)  # a blank thumbnail correlates with nothing
    a, b = place[: len(first)], place[len(first) :]
    # In pieces: a common picture can have many pairs.
    pieces = np.array_split(np.arange(len(a)), len(a) // 65536 + 1)
    agreement = np.concatenate([np.einsum("ij,ij->i", flat[a[piece]], flat[b[piece]]) for piece in pieces])
    return first[agreement >= correlation], second[agreement >= correlation]


def read_thumbnails(rows: pd.DataFrame, workers: int | None = None) -> NDArray[np.float32]:
    """Thumbnails (N, 32, 32) of images, in [0, 255], read by all cores."""
    items = list(zip(rows["image_id"], rows["path"], strict=True))
    return np.stack(list(ordered_map(partial(_thumbnail, side=SIDE), items, workers)))


def _thumbnail(item: tuple[str, str], side: int) -> NDArray[np.float32]:
    import cv2

    from chestflow.errors import naming_image
    from chestflow.imaging.read import read_radiograph

    image_id, path = item
    with naming_image(image_id, "compared with others"):
        pixels = read_radiograph(Path(path)).uint8().astype(np.float32)
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), dtype=np.float32)
