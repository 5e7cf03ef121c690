"""A small classifier on a view's numbers, answered out of fold, as a lower bound on what a network could pick up there.

Principal components and logistic regression: seconds for thousands of images, no luck of a seed. Whatever it finds, a
network can find; what it misses, a network may still find.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chestflow.evaluation.metrics import summarise

#: Folds of the probe, and so the fewest groups of each class that it needs.
FOLDS = 5
COMPONENTS = 60
#: Inverse strength of the penalty on the weights.
C = 0.1
ABOUT = (
    f"{COMPONENTS} principal components of a thumbnail, grey levels and neighbouring steps, then logistic regression; "
    f"{FOLDS} folds over groups; a lower bound on what a network could pick up"
)


def too_few(y: NDArray[np.int64], groups: NDArray, names: list[str]) -> str | None:
    """Why a question cannot be put, or None."""
    counts = {name: len(np.unique(groups[y == index])) for index, name in enumerate(names)}
    if len(names) < 2:
        return "nothing to tell apart"
    short = [f"{name} has {count}" for name, count in counts.items() if count < FOLDS]
    return f"{FOLDS} groups each are needed, and {', '.join(short)}" if short else None


def out_of_fold(
    x: NDArray[np.float32], y: NDArray[np.int64], groups: NDArray, strata: NDArray, seed: int
) -> NDArray[np.float64]:
    """Probabilities (N, C) of each image by a probe that saw none of its group.

    Args:
        x: (N, F).
        y: (N,), 0 to C - 1, each with at least :data:`FOLDS` groups.
        groups: (N,), never split.
        strata: (N,), spread evenly over the folds.
        seed: of the folds and the components.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships none

    p = np.full((len(y), int(y.max()) + 1), 1 / (int(y.max()) + 1))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    # One thread: sums, and so the last digits, would depend on the number of cores.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.filterwarnings("ignore", message="The least populated class")  # of a stratum; classes have enough
        for train, test in folds.split(x, strata, groups):
            varies = np.ptp(x[train], axis=0) > 0  # the same in all images, as cells that a view leaves empty
            if not varies.any():
                continue
            components = min(COMPONENTS, len(train) - 1, int(varies.sum()))
            probe = make_pipeline(
                StandardScaler(),
                PCA(components, random_state=seed),
                LogisticRegression(C=C, class_weight="balanced", max_iter=2000),
            )
            probe.fit(x[train][:, varies], y[train])
            p[test] = 0
            p[np.ix_(test, probe.classes_)] = probe.predict_proba(x[test][:, varies])
    return p


def ask(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    groups: NDArray,
    strata: NDArray,
    names: list[str],
    *,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """How well a view tells the classes: ``images``, ``auroc`` (of the last), ``macro_auroc``, ``balanced_accuracy``.

    Figures carry intervals from a bootstrap over groups. Where the question cannot be put, ``reason`` says why and
    there is no figure.
    """
    reason = too_few(y, groups, names)
    if reason is not None:
        return {"defined": False, "reason": reason, "images": len(y)}
    p = out_of_fold(x, y, groups, strata, seed)
    called = np.argmax(p, axis=1)
    found = summarise(y, p, called, groups, resamples=resamples, rng=np.random.default_rng(seed))
    wanted = ("auroc", "macro_auroc", "balanced_accuracy")
    return {"defined": True, "reason": None, "images": len(y), **{name: found[name].json() for name in wanted}}
