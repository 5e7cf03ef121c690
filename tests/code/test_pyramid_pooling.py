import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chestflow.nn.pooling import SpatialPyramid, pyramid_weights


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 40), st.integers(4, 40), st.sampled_from([(1, 2), (1, 2, 4), (1, 2, 3, 6)]))
def test_length_does_not_depend_on_the_map(height, width, levels):
    pyramid = SpatialPyramid(levels)
    x = features(2, 3, height, width)
    assert pyramid(x).shape == (2, sum(n * n for n in levels), 3)
    assert pyramid.vector(x).shape == (2, 3 * pyramid.bins)


def test_default_has_21_bins_and_level_one_is_the_global_pool():
    x = features(2, 5, 7, 7)
    assert SpatialPyramid().bins == 21
    torch.testing.assert_close(SpatialPyramid(pool="max")(x)[:, 0], x.amax((2, 3)))
    torch.testing.assert_close(SpatialPyramid(pool="avg")(x)[:, 0], x.mean((2, 3)))


def test_bins_in_reading_order_and_averages_nest():
    x = features(1, 2, 8, 8)
    bins = SpatialPyramid(pool="avg")(x)[0]  # (21, 2)
    torch.testing.assert_close(bins[1], x[0, :, :4, :4].mean((1, 2)))
    torch.testing.assert_close(bins[2], x[0, :, :4, 4:].mean((1, 2)))
    torch.testing.assert_close(bins[5:].mean(0), bins[0])
    torch.testing.assert_close(bins[1:5].mean(0), bins[0])


def test_map_smaller_than_a_level_repeats_cells():
    x = features(1, 2, 2, 2)
    bins = SpatialPyramid((2, 4))(x)
    assert {tuple(b.tolist()) for b in bins[0, 4:]} == {tuple(b.tolist()) for b in bins[0, :4]}


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((1,), [1.0]),
        ((1, 2), [1 / 2, 1 / 2]),
        ((1, 2, 4), [1 / 4, 1 / 4, 1 / 2]),
        ((1, 2, 3, 6), [1 / 8, 1 / 8, 1 / 4, 1 / 2]),
    ],
)
def test_pyramid_match_weights(levels, expected):
    weights = pyramid_weights(levels)
    starts = [sum(n * n for n in levels[:i]) for i in range(len(levels))]
    per_level = [float(weights[s]) for s in starts]
    assert per_level == expected
    assert sum(per_level) == 1
    for start, n in zip(starts, levels, strict=True):
        assert len(set(weights[start : start + n * n].tolist())) == 1


def test_vector_is_weighted_bin_by_bin_and_weights_can_be_off():
    x = features(1, 3, 7, 7)
    weighted, plain = SpatialPyramid(), SpatialPyramid(weighting=False)
    torch.testing.assert_close(plain.vector(x), plain(x).flatten(1))
    torch.testing.assert_close(weighted.vector(x).view(1, 21, 3)[:, 5:], 0.5 * weighted(x)[:, 5:])


@pytest.mark.parametrize("levels", [(), (0, 1), (2, 1), (1, 1)])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(ValueError, match="levels"):
        SpatialPyramid(levels)


def test_impossible_pool_is_refused():
    with pytest.raises(ValueError, match="pool"):
        SpatialPyramid(pool="sum")
