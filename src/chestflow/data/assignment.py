"""Dividing groups of images so that each label is spread evenly: folds, and a share of what is left."""

from __future__ import annotations

import warnings
import zlib
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Shares are met to the nearest fraction with a denominator up to this.
FINEST = 20


def stream(seed: int, name: str, *more: int) -> int:
    """A seed of its own for each cohort and fold, so that none depends on how many others there are."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode()), *more]).generate_state(1)[0])


def folds(labels: NDArray[Any], groups: NDArray[Any], k: int, seed: int) -> NDArray[np.intp]:
    """Fold 0 to k - 1 of each image; a group lies in one fold, and each label is spread as evenly as groups allow.

    Args:
        labels: (N,) of any type.
        groups: (N,) names.
        k: number of folds, at most the number of groups.
        seed: of the order in which groups of equal weight are dealt.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    # scikit-learn wants k images of some label; a cohort whose every label is rarer is dealt as one label.
    _, code, counts = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    if counts.max() < k:
        code = np.zeros(len(labels), int)
    fold = np.full(len(labels), -1, np.intp)
    divide = StratifiedGroupKFold(n_splits=k, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # the split's report says it by name
        for number, (_, held) in enumerate(divide.split(code, code, groups)):
            fold[held] = number
    return fold


def share_of(labels: NDArray[Any], groups: NDArray[Any], share: float, seed: int) -> NDArray[np.bool_]:
    """Choose about ``share`` of the images, by whole groups, stratified.

    The images are divided into as many folds as the share's denominator says, and the numerator's folds are taken.
    """
    fraction = Fraction(share).limit_denominator(min(FINEST, len(set(groups))))
    if fraction <= 0:
        fraction = Fraction(1, min(FINEST, len(set(groups))))
    if fraction >= 1:
        return np.ones(len(labels), bool)
    return folds(labels, groups, fraction.denominator, seed) < fraction.numerator


def whole_groups(sizes: NDArray[np.intp], target: int, seed: int) -> NDArray[np.bool_]:
    """Choose groups whose sizes add to ``target``, or where none do, to the most below it (a subset sum, exact).

    The groups are shuffled, and the first of them by which the number can be met are used, so that a large choice costs
    no more than it needs.

    Args:
        sizes: (G,) of the groups, at least 1 each.
        target: images.
        seed: of the order; the same groups, in the same order, give the same choice.

    Returns:
        (G,) which groups are chosen.
    """
    chosen = np.zeros(len(sizes), bool)
    order = np.random.default_rng(seed).permutation(len(sizes))
    # Bit s of an integer says that the groups so far can add to s.
    within = (1 << (target + 1)) - 1
    reachable = [1]
    for group in order:
        reachable.append((reachable[-1] | reachable[-1] << int(sizes[group])) & within)
        if reachable[-1] >> target:
            break
    total = reachable[-1].bit_length() - 1
    for place in range(len(reachable) - 1, 0, -1):
        if not reachable[place - 1] >> total & 1:
            group = order[place - 1]
            chosen[group] = True
            total -= int(sizes[group])
    return chosen
