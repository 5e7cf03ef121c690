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
#: Above this many values, and with fewer samples than values, the covariance is kept by its directions: as a matrix, a
#: fusion of 6656 values would take 177 MB and minutes.
WIDE = 2048
QUANTILE = 0.99
_RIDGE = 1e-6


def statistics(train: NDArray[np.float32], tune: NDArray[np.float32]) -> dict[str, Tensor]:
    """``mean`` (E,), ``threshold`` () and the covariance, from embeddings (N, E) of the train and tune roles.

    The covariance is Ledoit and Wolf's, with a ridge of 1e-6 of the mean variance, so that dead units or fewer samples
    than dimensions leave it invertible. It is kept as ``precision`` (E, E), its inverse; of wide embeddings as the
    ``directions`` (R, E) in which the samples differ, the ``variances`` (R,) along them and ``rest`` (), that along all
    others.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):  # sums, and so bytes, would depend on the number of threads
        known = train.astype(np.float64)
        wide = known.shape[1] > max(WIDE, len(known))
        found = {"mean": torch.from_numpy(known.mean(0)).float(), **(_directions(known) if wide else _matrix(known))}
        far = float(np.quantile(distance(tune, found).numpy(), QUANTILE))
    return {**found, "threshold": torch.tensor(far, dtype=torch.float32)}


def _matrix(train: NDArray[np.float64]) -> dict[str, Tensor]:
    from sklearn.covariance import ledoit_wolf

    covariance, _ = ledoit_wolf(train)
    ridge = _RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    precision = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
    return {"precision": torch.from_numpy((precision + precision.T) / 2).float()}


def _directions(train: NDArray[np.float64]) -> dict[str, Tensor]:
    """The same covariance without ever making it: the sample covariance's eigenvectors, and shrinkage to its trace."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    shrinkage = ledoit_wolf_shrinkage(train)
    _, spread, directions = np.linalg.svd(train - train.mean(0), full_matrices=False)
    variances = spread**2 / len(train)
    mean = float(variances.sum()) / train.shape[1]
    rest = shrinkage * mean + _RIDGE * max(mean, 1e-12)
    return {
        "directions": torch.from_numpy(directions).float(),
        "variances": torch.from_numpy((1 - shrinkage) * variances + rest).float(),
        "rest": torch.tensor(rest, dtype=torch.float32),
    }


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
    if "precision" in found:
        return torch.einsum("ne,ef,nf->n", centred, found["precision"].double(), centred).clamp_min(0.0).sqrt()
    along = centred @ found["directions"].double().T  # (N, R)
    beside = (centred.square().sum(1) - along.square().sum(1)).clamp_min(0.0)
    return ((along.square() / found["variances"].double()).sum(1) + beside / found["rest"].double()).sqrt()


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
