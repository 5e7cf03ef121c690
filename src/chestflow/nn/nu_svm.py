"""A fitted Nu-SVM as a layer: Schoelkopf et al., "New support vector algorithms" (2000), with a radial kernel.

Fitting is scikit-learn's (libsvm's); the result lives in buffers, so it is saved and restored with a network's weights
and answers without scikit-learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from chestflow.errors import ConfigError, TrainingError

TOLERANCE = 1e-5  # of libsvm's solver


class NuSvm(nn.Module):
    """f(x) = sum_i a_i exp(-gamma |s_i - z|^2) + b with z the standardised x; above 0 for the positive class.

    Before :meth:`fit` it has no support vectors and answers 0. How many there are follows from the data, so restoring a
    state takes the number of the state's.

    Args:
        size: E, of the vectors.

    Buffers: ``mean`` and ``deviation`` (E,), ``support`` (S, E), ``coefficients`` (S,), ``gamma`` and ``offset`` ().
    """

    mean: Tensor
    deviation: Tensor
    support: Tensor
    coefficients: Tensor
    gamma: Tensor
    offset: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))
        self.register_buffer("support", torch.zeros(0, size))
        self.register_buffer("coefficients", torch.zeros(0))
        self.register_buffer("gamma", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def standardised(self, x: Tensor) -> Tensor:
        """(B, E) to zero mean and unit deviation over the vectors it was fitted on, as it was told to."""
        return (x.float() - self.mean) / self.deviation

    def forward(self, x: Tensor) -> Tensor:
        """Standardised vectors (B, E) to decisions (B,), in float32 under mixed precision."""
        kind = x.device.type
        # shapes are worked out on the meta device, which has no mixed precision to turn off
        with torch.autocast(kind if torch.amp.is_autocast_available(kind) else "cpu", enabled=False):
            x = x.float()
            squared = x.square().sum(1)[:, None] + self.support.square().sum(1) - 2 * x @ self.support.t()
            return torch.exp(-self.gamma * squared.clamp_min(0.0)) @ self.coefficients + self.offset

    def fit(
        self, vectors: NDArray[np.float64], target: NDArray[np.int64], *, nu: float, gamma: float | None, scale: bool
    ) -> None:
        """Fit to vectors (N, E) of classes 0 and 1.

        Args:
            nu: bound of the share of training vectors on the wrong side of the margin, and below that of support
                vectors.
            gamma: of the kernel; None takes 1 over E times the variance of what the kernel sees.
            scale: standardise the vectors first; one that does not vary becomes 0.

        Raises:
            ConfigError: a class is missing, or is too small for this nu.
            TrainingError: the vectors tell the machine nothing.
        """
        from sklearn.svm import NuSVC
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

        count, bound = len(target), nu_bound(target)
        if nu >= bound:
            raise ConfigError(
                f"nu is {nu}; with {int(target.sum())} of {count} training images positive it must be below"
                f" {bound:.4g}, twice the smaller class's share: lower nu in the run's config"
            )
        mean, deviation = np.zeros(vectors.shape[1]), np.ones(vectors.shape[1])
        if scale:
            mean, spread = vectors.mean(0), vectors.std(0)
            deviation = np.where(spread > 1e-6, spread, 1.0)
        rows = (vectors - mean) / deviation
        variance = float(rows.var())
        width = gamma if gamma is not None else 1.0 / (rows.shape[1] * variance) if variance > 0 else 1.0
        try:
            with threadpool_limits(1):
                fitted: Any = NuSVC(nu=nu, kernel="rbf", gamma=width, tol=TOLERANCE).fit(rows, target)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise TrainingError(
                f"the Nu-SVM cannot be fitted to the features ({reason}): check the backbone's weights and the images"
            ) from None
        self.mean.copy_(_tensor(mean))
        self.deviation.copy_(_tensor(deviation))
        self.support = _tensor(fitted.support_vectors_).to(self.mean.device)
        self.coefficients = _tensor(fitted.dual_coef_[0]).to(self.mean.device)
        self.gamma.fill_(width)
        self.offset.fill_(float(fitted.intercept_[0]))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("support", "coefficients"):
            found = state.get(prefix + name)
            if found is not None and found.shape[1:] == getattr(self, name).shape[1:]:
                setattr(self, name, getattr(self, name).new_zeros(found.shape))
        super()._load_from_state_dict(state, prefix, *rest)


def nu_bound(target: NDArray[np.int64]) -> float:
    """Below which nu is feasible: twice the smaller class's share. At the bound itself no margin is left."""
    positives = int(target.sum())
    return 2 * min(positives, len(target) - positives) / max(len(target), 1)


def _tensor(values: NDArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()
