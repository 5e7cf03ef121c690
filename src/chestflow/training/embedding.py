"""How far an input lies from what a network was trained on: Mahalanobis distance of its embedding.

Mean and shrunk covariance come from the train role, the distance beyond which an input counts as unusual from the tune
role, which the network did not fit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chestflow.files import atomic_path
from chestflow.training.loader import LUNG_BIT, PackLike

#: Longer vectors are not stored: a bilinear network's would take gigabytes.
LONGEST = 16_384
QUANTILE = 0.99
_RIDGE = 1e-6


def statistics(train: NDArray[np.float32], tune: NDArray[np.float32]) -> dict[str, Tensor]:
    """``mean`` (E,), ``precision`` (E, E) and ``threshold`` () from embeddings (N, E) of the train and tune roles.

    The covariance is Ledoit and Wolf's, with a ridge of 1e-6 of the mean variance, so that dead units or fewer samples
    than dimensions leave it invertible.
    """
    from sklearn.covariance import ledoit_wolf
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):  # sums, and so bytes, would depend on the number of threads
        covariance, _ = ledoit_wolf(train.astype(np.float64))
        ridge = _RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-12)
        precision = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
        found = {
            "mean": torch.from_numpy(train.astype(np.float64).mean(0)).float(),
            "precision": torch.from_numpy((precision + precision.T) / 2).float(),
        }
        far = float(np.quantile(distance(tune, found).numpy(), QUANTILE))
    return {**found, "threshold": torch.tensor(far, dtype=torch.float32)}


def store(path: Path, vectors: NDArray[np.float32], modality: str, classes: int) -> None:
    """Write the test role's vectors (N, E) as float16, of CT slices: the report draws them as paper 003 does.

    Nothing is written for other pictures, of networks without a vector of their own (E is then the number of classes),
    and of vectors longer than :data:`LONGEST`.
    """
    if modality != "ct_slice" or not classes < vectors.shape[1] <= LONGEST:
        return
    largest = np.finfo(np.float16).max
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.save(stream, np.clip(vectors, -largest, largest).astype(np.float16))


def distance(embedding: NDArray[np.float32] | Tensor, found: dict[str, Tensor]) -> Tensor:
    """Mahalanobis distance (N,) in float64 of embeddings (N, E)."""
    centred = torch.as_tensor(embedding).double() - found["mean"].double()
    return torch.einsum("ne,ef,nf->n", centred, found["precision"].double(), centred).clamp_min(0.0).sqrt()


def lung_area_range(pack: PackLike, rows: NDArray[np.int64]) -> Tensor | None:
    """The 0.5th and 99.5th percentile (2,) of the share of lung in the pictures; None where no lung mask is known."""
    known = pack.index.set_index("row")["has_lung"].reindex(rows).to_numpy(bool)
    if not known.any():
        return None
    areas = []
    for row in rows[known]:
        _, masks = pack.gather([row])
        assert masks is not None
        areas.append(float(((masks & LUNG_BIT) > 0).mean()))
    return torch.tensor(np.quantile(areas, [0.005, 0.995]), dtype=torch.float32)
