"""Samplers: frequencies, membership, edge cases and determinism."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from chestflow.errors import ConfigError, DataError
from chestflow.training import samplers
from chestflow.training.phases import Sampler


def table(targets: list[int], ratios: list[float] | None = None) -> pd.DataFrame:
    ratios = [float("nan")] * len(targets) if ratios is None else ratios
    return pd.DataFrame({"row": range(len(targets)), "target": targets, "ratio": ratios})


def epoch(sampler: Sampler, frame: pd.DataFrame, batch_size: int = 4, seed: int = 0) -> list[list[int]]:
    return [list(b) for b in sampler(frame, batch_size, torch.Generator().manual_seed(seed))]


def sized(counts: tuple[int, int, int, int]) -> pd.DataFrame:
    """A table with so many samples in covid_small, covid_large, cap_small, cap_large."""
    ratios = [0.02] * counts[0] + [0.05] * counts[1] + [0.0005] * counts[2] + [0.01] * counts[3]
    return table([1] * (counts[0] + counts[1]) + [0] * (counts[2] + counts[3]), ratios)


@given(n=st.integers(0, 40), batch_size=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_uniform_shows_each_sample_once_and_leaves_no_single_sample(n: int, batch_size: int) -> None:
    shown = epoch(samplers.uniform, table([0] * n), batch_size)
    assert sorted(i for b in shown for i in b) == list(range(n))
    assert all(len(b) <= batch_size + 1 for b in shown)
    if batch_size > 1 and n > 1:
        assert all(len(b) > 1 for b in shown)


def test_epochs_of_one_generator_differ_and_its_state_brings_an_epoch_back() -> None:
    frame = sized((5, 9, 8, 3))
    for sampler in (samplers.uniform, samplers.oversample({1: 3}), samplers.size_balanced(), samplers.class_balanced()):
        generator = torch.Generator().manual_seed(3)
        state = generator.get_state()
        first = [list(b) for b in sampler(frame, 6, generator)]
        second = [list(b) for b in sampler(frame, 6, generator)]
        generator.set_state(state)
        assert first != second
        assert first == [list(b) for b in sampler(frame, 6, generator)]


def test_oversample_repeats_one_class_only() -> None:
    shown = Counter(i for b in epoch(samplers.oversample({1: 5}), table([0, 0, 0, 1, 1])) for i in b)
    assert dict(shown) == {0: 1, 1: 1, 2: 1, 3: 5, 4: 5}
    with pytest.raises(ConfigError, match="at least 1"):
        samplers.oversample({1: 0})


def test_size_groups_have_the_papers_boundaries() -> None:
    frame = table([1, 1, 1, 0, 0, 0, 0], [0.0299, 0.030, 0.2, 0.0, 0.001, 0.0011, float("nan")])
    assert samplers.size_groups(frame).tolist() == [0, 1, 1, 2, 2, 3, -1]


def test_weights_of_table_three() -> None:
    """COVID-19 counts of the paper's Table III give 625 / 469; equal sizes give a uniform draw over groups."""
    assert samplers.group_weights([469, 625, 838, 254])[0] == pytest.approx(1.3326, abs=1e-4)
    assert samplers.group_weights([3, 3, 7, 7]).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("counts", "want"),
    [
        ((0, 6, 4, 2), [0, 1, 1, 2]),
        ((6, 0, 4, 2), [1, 0, 1, 2]),
        ((2, 4, 0, 5), [2, 1, 0, 1]),
        ((2, 4, 5, 0), [2, 1, 1, 0]),
        ((0, 0, 5, 5), [0, 0, 1, 1]),
    ],
)
def test_an_empty_group_is_dropped_and_its_sibling_weighs_one(
    counts: tuple[int, int, int, int], want: list[float]
) -> None:
    assert samplers.group_weights(counts).tolist() == want
    frame = sized(counts)
    group = samplers.size_groups(frame)
    shown = [i for b in epoch(samplers.size_balanced(), frame) for i in b]
    assert len(shown) == len(frame)
    assert set(group[shown]) <= {g for g, n in enumerate(counts) if n}


@pytest.mark.parametrize("mode", ["group_first", "per_sample"])
def test_size_balanced_long_run_frequencies(mode: str) -> None:
    """10,000 draws against the stated probabilities, over groups and over the samples inside them (chi-square)."""
    counts = (20, 80, 60, 40)
    frame = sized(counts)
    frame = pd.concat([frame] * 50, ignore_index=True)  # 10,000 samples in the same proportions
    group = samplers.size_groups(frame)
    drawn = np.array([i for b in epoch(samplers.size_balanced(mode=mode), frame, 64, seed=1) for i in b])
    weights = samplers.group_weights(counts)
    share = weights / weights.sum() if mode == "group_first" else weights * counts / (weights * counts).sum()
    assert chisquare(np.bincount(group[drawn], minlength=4), share * len(drawn)).pvalue > 1e-3
    for g in range(4):
        inside = drawn[group[drawn] == g]
        tenths = np.bincount(np.searchsorted(np.flatnonzero(group == g), inside) * 10 // (group == g).sum())
        assert chisquare(tenths).pvalue > 1e-3


def test_the_two_modes_are_not_the_same() -> None:
    """Per-sample weights make the two sizes of a class equally frequent; group-first favours the smaller group."""
    frame = pd.concat([sized((20, 80, 60, 40))] * 50, ignore_index=True)
    group = samplers.size_groups(frame)
    small_share = {}
    for mode in ("group_first", "per_sample"):
        drawn = group[[i for b in epoch(samplers.size_balanced(mode=mode), frame, 64) for i in b]]
        small_share[mode] = (drawn == 0).sum() / (drawn <= 1).sum()
    assert small_share["group_first"] == pytest.approx(0.8, abs=0.02)
    assert small_share["per_sample"] == pytest.approx(0.5, abs=0.02)


def test_size_balanced_without_ratios_says_what_to_do() -> None:
    with pytest.raises(DataError, match="infection masks"):
        epoch(samplers.size_balanced(), table([0, 1, 1]))
    with pytest.raises(ConfigError, match="group_first"):
        samplers.size_balanced(mode="both")


def test_samples_without_a_ratio_are_never_drawn() -> None:
    frame = table([1, 1, 0, 0], [0.01, float("nan"), 0.0, float("nan")])
    frame["ratio"] = frame["ratio"].astype("Float64").mask(frame["ratio"].isna())  # nullable, as parquet may give it
    assert {i for s in range(20) for b in epoch(samplers.size_balanced(), frame, seed=s) for i in b} == {0, 2}


def test_how_many_samples_lack_a_ratio_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    nan = float("nan")
    sampler = samplers.size_balanced()
    for seed in (0, 1):
        epoch(sampler, table([1, 1, 0, 0], [0.01, nan, 0.0, nan]), seed=seed)
    epoch(samplers.size_balanced(), table([1, 0], [0.01, 0.0]))
    assert capsys.readouterr().err.splitlines() == [
        "size-balanced sampling: 2 of 4 training samples have no infection ratio and are never drawn"
    ]


@given(sizes=st.lists(st.integers(2, 12), min_size=2, max_size=4), batch_size=st.integers(8, 17))
@settings(max_examples=50, deadline=None)
def test_class_balanced_batches_hold_every_class_equally(sizes: list[int], batch_size: int) -> None:
    frame = table([c for c, n in enumerate(sizes) for _ in range(n)])
    shown = epoch(samplers.class_balanced(2), frame, batch_size)
    assert len(shown) == -(-len(frame) // batch_size)
    for batch in shown:
        per_class = np.bincount(frame["target"].to_numpy()[batch], minlength=len(sizes))
        assert len(batch) == batch_size
        assert per_class.min() >= 2
        assert per_class.max() - per_class.min() <= 1
        for c, n in enumerate(sizes):  # no sample twice before each of its class was shown
            if n >= per_class[c]:
                mine = [i for i in batch if frame["target"][i] == c]
                assert len(set(mine)) >= min(n, len(mine)) - len(mine) // 2


def test_class_balanced_needs_room_for_every_class() -> None:
    with pytest.raises(ConfigError, match="at least 6"):
        epoch(samplers.class_balanced(2), table([0, 1, 2]), 5)


def test_class_balanced_refuses_a_class_of_a_single_image() -> None:
    with pytest.raises(ConfigError, match="a class has 1 training image"):
        epoch(samplers.class_balanced(2), table([0, 0, 1]), 8)
