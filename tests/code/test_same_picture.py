"""Near hashes and the pictures that they lead to, against plain comparison of all with all."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chestflow.data.same_picture import candidates, near_hashes, read_thumbnails, same_pictures
from chestflow.errors import DataError


def plainly(hashes: list[int], hamming: int) -> set[tuple[int, int]]:
    return {
        (a, b)
        for a in range(len(hashes))
        for b in range(a + 1, len(hashes))
        if (hashes[a] ^ hashes[b]).bit_count() <= hamming
    }


@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=12, unique=True),
    st.lists(st.tuples(st.integers(0, 11), st.sets(st.integers(0, 63), max_size=8)), max_size=20),
    st.integers(0, 7),
)
@settings(max_examples=60, deadline=None)
def test_near_hashes_are_those_of_a_comparison_of_all(
    base: list[int], flips: list[tuple[int, set[int]]], hamming: int
) -> None:
    near = [base[i % len(base)] ^ sum(1 << bit for bit in bits) for i, bits in flips] if base else []
    hashes = sorted({*base, *near})
    first, second = near_hashes(np.array(hashes, dtype=np.uint64), hamming)
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == plainly(hashes, hamming)


@pytest.mark.parametrize("hamming", [0, 63, 64])
def test_the_ends_of_the_range(hamming: int) -> None:
    hashes = [0, 1, 2**64 - 1]
    pairs = near_hashes(np.array(hashes, dtype=np.uint64), hamming)
    assert set(zip(*map(np.ndarray.tolist, pairs), strict=True)) == plainly(hashes, hamming)


def test_a_hundred_thousand_hashes_take_seconds() -> None:
    """Skewed as those of chests are: a common pattern, and each bit flipped with a chance of its own."""
    random = np.random.default_rng(0)
    chance = random.beta(0.6, 0.6, 64)
    bits = random.random((100_000, 64)) < chance
    hashes = np.unique(np.packbits(bits, axis=1).view(np.uint64).ravel())
    start = time.process_time()
    first, _ = near_hashes(hashes, 4)
    assert len(hashes) > 90_000
    assert len(first) > 0
    assert time.process_time() - start < 60  # 6 s on an idle core; comparing all with all takes minutes in Python


def table(hashes: list[str | None], modality: str = "cxr") -> pd.DataFrame:
    ids = [f"alpha-{i:012d}" for i in range(len(hashes))]
    return pd.DataFrame({"image_id": ids, "path": ids, "phash": hashes, "modality": modality})


def test_candidates_expand_equal_hashes_and_skip_blank_and_missing_ones() -> None:
    a, b, blank = "f0f0f0f0f0f0f0f0", "f0f0f0f0f0f0f0f3", "8000000000000000"
    pairs = candidates(table([a, b, a, blank, blank, None, "0f0f0f0f0f0f0f0f"]), 4)
    assert set(zip(*map(np.ndarray.tolist, pairs), strict=True)) == {(0, 1), (0, 2), (1, 2)}


def test_candidates_stay_within_a_modality() -> None:
    rows = table(["f0f0f0f0f0f0f0f0"] * 2)
    rows.loc[1, "modality"] = "ct_slice"
    assert len(candidates(rows, 4)[0]) == 0


def test_thumbnails_decide() -> None:
    picture = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    other = np.random.default_rng(1).random((32, 32)).astype(np.float32)
    # The same with another contrast; another one; and two blank ones, which resemble nothing.
    thumbnails = np.stack([picture, 40 * picture + 7, other, 0 * picture, 0 * picture])
    rows = table(["f0f0f0f0f0f0f0f0"] * 5)
    first, second = same_pictures(rows, candidates(rows), thumbnails=lambda _: thumbnails)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1)]


def test_a_file_that_is_gone_is_named_by_its_identity(tmp_path) -> None:
    rows = table(["f0f0f0f0f0f0f0f0"]).assign(path=str(tmp_path / "Smith_John.png"))
    with pytest.raises(DataError, match="image alpha-000000000000") as caught:
        read_thumbnails(rows)
    assert "Smith" not in str(caught.value)


def test_thumbnails_are_read_from_files(tmp_path) -> None:
    import cv2

    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    large, small = cv2.resize(pixels, (256, 256)), cv2.resize(pixels, (160, 200))
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    cv2.imwrite(paths[0], large)
    cv2.imwrite(paths[1], small)
    rows = table(["f0f0f0f0f0f0f0f0"] * 2).assign(path=paths)
    assert read_thumbnails(rows).shape == (2, 32, 32)
    first, _ = same_pictures(rows, candidates(rows))
    assert len(first) == 1
