"""When a model should not answer, and how often it wrongly refuses.

An input is unlike the training set when the Mahalanobis distance of its embedding lies beyond the 99th percentile of
the tune role, or when its share of lung lies outside the middle 99% of the train role. With several networks the median
of distance / threshold decides. With many tune images about one in a hundred
fitting inputs is refused for its distance, with few (n below 100) about one in n + 1; the
rate on the test role is measured when a model is registered.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chestflow.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor

    from chestflow.data.packs import Pack
    from chestflow.serving.bundle import Bundle

REASONS = {
    "wrong_modality": "another kind of image than the model reads",
    "blank": "the picture shows nothing",
    "unlike_training": "far from everything that the model was trained on",
    "lung_area": "the lungs fill an unusual share of the picture, or none can be found",
}


def load_statistics(folder: Path) -> dict[str, Tensor]:
    """What :func:`chestflow.training.embedding.statistics` made of one network's training, and, where lungs are known,
    ``lung_area_range``.

    Raises:
        TrainingError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "embedding.safetensors"
    try:
        found = load_file(path)
    except (OSError, SafetensorError):
        raise TrainingError(f"{path.name} is missing or damaged: train the run again, or restore the folder") from None
    complete = {"mean", "threshold"} <= found.keys()
    if not complete or not ("precision" in found or {"directions", "variances", "rest"} <= found.keys()):
        raise TrainingError(f"{path.name} lacks the mean, the covariance or the threshold: train the run again")
    return found


def relative_distances(embedding: np.ndarray, found: dict[str, Tensor]) -> np.ndarray:
    """Distance / threshold (N,) of embeddings (N, E); above 1 is unusual for this network."""
    from chestflow.training.embedding import distance

    return np.asarray(distance(embedding, found).numpy() / max(float(found["threshold"]), 1e-12))


def lung_share(masks: np.ndarray | None) -> float | None:
    """Share of lung in a packed picture or volume; None where no lung mask can be made."""
    return None if masks is None else float(((masks & 1) > 0).mean())


def verdict(
    relative: Sequence[float], shares: Sequence[float | None], found: Sequence[dict[str, Tensor]]
) -> tuple[str, str] | None:
    """Reason and detail when an input should not be answered, else None.

    Args:
        relative: distance / threshold, one a network.
        shares: of lung as each network sees the input (recipes may frame it differently); None is not judged.
        found: the networks' statistics.
    """
    judged = [
        (share, *s["lung_area_range"].tolist())
        for share, s in zip(shares, found, strict=True) if share is not None and "lung_area_range" in s
    ]  # fmt: skip
    if judged:
        share, low, high = (statistics.median(one[part] for one in judged) for part in range(3))
        if not (statistics.median(s - a for s, a, _ in judged) >= 0 <= statistics.median(b - s for s, _, b in judged)):
            return "lung_area", f"lungs fill {share:.1%} of the picture; in training {low:.1%} to {high:.1%}"
    middle = statistics.median(relative)
    if not middle <= 1.0:  # NaN abstains too
        return "unlike_training", f"its distance from the training set is {middle:.2f} times the limit"
    return None


def false_abstention(bundle: Bundle, folder: Path, out: Path, *, device: str = "cpu") -> dict[str, Any]:
    """How often a model would refuse its own test images, each fold's by that fold's networks.

    Args:
        bundle: the model.
        folder: its files.
        out: the stages' outs, with packs and predictions.
        device: as in ``engine.device``.

    Returns:
        ``images``, ``abstained``, ``rate`` with its 95% Wilson interval ``lo`` and ``hi``, and each reason's count.
    """
    from chestflow.data.packs import Pack
    from chestflow.files import read_parquet

    packs = {m.run: Pack.open(out / "packs" / str(bundle.recipe_of(m.run)["name"])) for m in bundle.members}
    reasons: list[str | None] = []
    for fold in sorted({member.fold for member in bundle.members}):
        members = [member for member in bundle.members if member.fold == fold]
        test = read_parquet(out / "predictions" / members[0].run / str(fold) / "test.parquet")
        images = test["image_id"].tolist()
        found = [load_statistics(folder / member.folder) for member in members]
        relative = [
            _distances(folder / member.folder, statistics_, packs[member.run], images, device)
            for member, statistics_ in zip(members, found, strict=True)
        ]
        shares = {run: _lung_shares(pack, images) for run, pack in packs.items()}
        for index in range(len(images)):
            each = [shares[member.run][index] for member in members]
            judged = verdict([float(r[index]) for r in relative], each, found)
            reasons.append(None if judged is None else judged[0])
    return rate(reasons)


def rate(reasons: Sequence[str | None]) -> dict[str, Any]:
    """Share of refused images with Wilson's 95% interval (NaN without images), and the reasons' counts."""
    n, k, z = len(reasons), sum(reason is not None for reason in reasons), 1.959963984540054
    counts = {name: sum(reason == name for reason in reasons) for name in ("lung_area", "unlike_training")}
    if n == 0:
        return {"images": 0, "abstained": 0, "rate": float("nan"), "lo": float("nan"), "hi": float("nan"), **counts}
    p, spread = k / n, z * np.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    centre, scale = p + z**2 / (2 * n), 1 + z**2 / n
    # rounding must not push the interval off a rate of 0 or 1
    low, high = min(p, max(0.0, (centre - spread) / scale)), max(p, min(1.0, (centre + spread) / scale))
    return {"images": n, "abstained": k, "rate": p, "lo": float(low), "hi": float(high), **counts}


def _lung_shares(pack: Pack, images: list[str]) -> list[float | None]:
    known = pack.index.set_index("row")["has_lung"]
    rows = pack.rows_of(images)
    # lungs are looked for on every volume: where they are unknown none were found
    volumes = pack.recipe["modality"] == "ct_volume"
    return [lung_share(pack.gather([row])[1]) if volumes or known.loc[row] else None for row in rows]


def _distances(folder: Path, found: dict[str, Tensor], pack: Pack, images: list[str], device: str) -> np.ndarray:
    from chestflow.training.hardware import choose_device
    from chestflow.training.inference import infer
    from chestflow.training.restore import load_network

    network, _ = load_network(folder)
    chosen = choose_device(device)
    inferred = infer(network.to(chosen), pack, np.asarray(pack.rows_of(images)), device=chosen, batch_size=8)
    return relative_distances(inferred.embedding, found)
