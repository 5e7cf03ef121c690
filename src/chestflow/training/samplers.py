"""Samplers: in which order, and how often, an epoch shows the training samples.

A sampler takes the training table (columns row, target, ratio), the batch size and a CPU generator, and yields one
epoch of batches as positions in that table. Every draw comes from the generator: the same state gives the same epoch.
The batches hold the samples of all processes together; the engine divides them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from chestflow.errors import ConfigError, DataError
from chestflow.training.phases import Sampler
from chestflow.training.progress import say

#: Order of the size groups of :func:`size_groups`.
GROUPS = ("covid_small", "covid_large", "cap_small", "cap_large")


def batches(order: Tensor, batch_size: int) -> Iterator[list[int]]:
    """Cut an epoch's order into batches; the last may be smaller.

    A single sample left over joins the batch before it, because batch norm cannot train on one sample.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    chunks = [chunk.tolist() for chunk in order.split(batch_size)] if len(order) else []
    if len(chunks) > 1 and len(chunks[-1]) == 1 and batch_size > 1:
        chunks[-2:] = [chunks[-2] + chunks[-1]]
    yield from chunks


def uniform(table: pd.DataFrame, batch_size: int, generator: Generator) -> Iterator[Sequence[int]]:
    """Every sample once an epoch, shuffled."""
    return batches(torch.randperm(len(table), generator=generator), batch_size)


def oversample(factors: dict[int, int]) -> Sampler:
    """Samples of class ``c`` appear ``factors[c]`` times an epoch, those of other classes once, all shuffled.

    Nothing is copied on disk, so a repeated image cannot end up on both sides of a split.

    Raises:
        ConfigError: a factor below 1.
    """
    if any(factor < 1 for factor in factors.values()):
        raise ConfigError(f"oversampling factors must be at least 1, got {factors}")

    def sample(table: pd.DataFrame, batch_size: int, generator: Generator) -> Iterator[Sequence[int]]:
        times = torch.tensor([factors.get(int(c), 1) for c in table["target"]], dtype=torch.int64)
        order = torch.arange(len(table)).repeat_interleave(times)
        return batches(order[torch.randperm(len(order), generator=generator)], batch_size)

    return sample


def size_groups(
    table: pd.DataFrame, covid_cut: float = 0.030, cap_cut: float = 0.001, positive: int = 1
) -> NDArray[np.int64]:
    """The size group of each sample, an index into :data:`GROUPS`; -1 where the infection ratio is unknown.

    COVID-19 is small if and only if its ratio is below ``covid_cut``; CAP is large if and only if its ratio is above
    ``cap_cut`` (paper 004, section II-C).
    """
    ratio = table["ratio"].to_numpy(dtype=float, na_value=np.nan)
    is_covid = table["target"].to_numpy() == positive
    group = np.where(is_covid, np.where(ratio < covid_cut, 0, 1), np.where(ratio > cap_cut, 3, 2))
    return np.where(np.isnan(ratio), -1, group)


def group_weights(counts: Sequence[int]) -> NDArray[np.float64]:
    """W = [N_large / N_small of COVID-19, 1, 1, N_small / N_large of CAP] for the groups in their order.

    An empty group has no weight, and its sibling's is 1: a ratio with it would be 0 or infinite.
    """
    covid_small, covid_large, cap_small, cap_large = counts
    weights = np.ones(4)
    if covid_small and covid_large:
        weights[0] = covid_large / covid_small
    if cap_small and cap_large:
        weights[3] = cap_small / cap_large
    return np.where(np.asarray(counts) > 0, weights, 0.0)


def size_balanced(
    covid_cut: float = 0.030, cap_cut: float = 0.001, mode: str = "group_first", positive: int = 1
) -> Sampler:
    """Size-balanced sampling of paper 004, section II-C, with replacement; as many draws as there are samples.

    Args:
        covid_cut: COVID-19 with a smaller ratio is of the small group.
        cap_cut: CAP with a greater ratio is of the large group.
        mode: ``group_first`` draws a group with probability W_g / sum W and then one of its samples uniformly, for
            every slot, as the paper says; ``per_sample`` gives each sample its group's W, which makes the two sizes of
            a class equally frequent.
        positive: the class index of COVID-19.

    Samples without a known ratio belong to no group and are never drawn; their number is said once.

    Raises:
        ConfigError: an unknown mode.
        DataError: no sample has a known ratio (when the epoch begins).
    """
    if mode not in ("group_first", "per_sample"):
        raise ConfigError(f"size_balanced has no mode {mode!r}: choose group_first or per_sample")
    said: set[int] = set()

    def sample(table: pd.DataFrame, batch_size: int, generator: Generator) -> Iterator[Sequence[int]]:
        group = size_groups(table, covid_cut, cap_cut, positive)
        members = [torch.from_numpy(np.flatnonzero(group == g)) for g in range(len(GROUPS))]
        counts = torch.tensor([len(m) for m in members])
        draws = int(counts.sum())
        if not draws:
            raise DataError(
                "size-balanced sampling needs infection ratios and no training sample has one: give infection masks, "
                "or sample uniformly"
            )
        without = len(table) - draws
        if without and without not in said:  # the next epoch's number is the same
            said.add(without)
            say(
                f"size-balanced sampling: {without} of {len(table)} training samples have no infection ratio and are"
                " never drawn"
            )
        weights = torch.from_numpy(group_weights(counts.tolist()))
        if mode == "per_sample":
            weights = weights * counts
        drawn = torch.multinomial(weights, draws, replacement=True, generator=generator)
        inside = torch.rand(draws, generator=generator, dtype=torch.float64)
        place = (inside * counts[drawn]).long().clamp_max(counts[drawn] - 1)
        starts = counts.cumsum(0) - counts
        return batches(torch.cat(members)[starts[drawn] + place], batch_size)

    return sample


def class_balanced(min_per_class: int = 2) -> Sampler:
    """Batches in which every class that the table holds fills the same number of slots.

    A class's samples come in shuffled rounds, so that none is repeated before all were shown; slots that do not divide
    evenly go to classes drawn anew for each batch. An epoch has as many batches as a uniform one, all of them full.

    Raises:
        ConfigError: ``batch_size`` cannot hold ``min_per_class`` of each class, or a class has fewer (when the epoch
            begins).
    """

    def sample(table: pd.DataFrame, batch_size: int, generator: Generator) -> Iterator[Sequence[int]]:
        target = table["target"].to_numpy()
        members = [torch.from_numpy(np.flatnonzero(target == c)) for c in np.unique(target)]
        if batch_size < min_per_class * len(members):
            raise ConfigError(
                f"batch_size {batch_size} cannot hold {min_per_class} samples of each of {len(members)} classes: "
                f"use at least {min_per_class * len(members)}"
            )
        least = min(map(len, members))
        if least < min_per_class:
            raise ConfigError(
                f"a class has {least} training image(s), {min_per_class} are needed: add images or patients"
            )
        return _balanced(members, -(-len(table) // batch_size), batch_size, generator)

    return sample


def _balanced(members: list[Tensor], count: int, batch_size: int, generator: Generator) -> Iterator[list[int]]:
    rounds: list[list[int]] = [[] for _ in members]
    for _ in range(count):
        extra = torch.randperm(len(members), generator=generator)[: batch_size % len(members)].tolist()
        batch: list[int] = []
        for c, rows in enumerate(members):
            slots = batch_size // len(members) + (c in extra)
            while len(rounds[c]) < slots:
                rounds[c] += rows[torch.randperm(len(rows), generator=generator)].tolist()
            batch += rounds[c][:slots]
            del rounds[c][:slots]
        yield batch
