"""NetVLAD: soft-assigned residuals to learnt cluster centres (paper 002, eqs. 1 to 4)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NetVLAD(nn.Module):
    """Aggregate N descriptors into one unit vector.

    a_k(x) = softmax_k(w_k . x + b_k); V_k = sum_n omega_n a_k(x_n) (x_n - c_k); each row V_k to unit length, then the
    whole. w, b and c are separate parameters (decoupled), tied at the start only: w_k = 2 alpha c_k and
    b_k = -alpha ||c_k||^2 make the assignment softmax_k(-alpha ||x - c_k||^2).

    The paper's eq. (2) lacks the exponential in its denominator and eq. (4) swaps the indices of V; both are read as
    the softmax and the K x D matrix that the text describes.

    Args:
        clusters: K.
        dim: D, the descriptors' length.
        normalise_input: L2-normalise each descriptor first. Weights omega then act on the assignments, where this
            normalisation cannot cancel them.
        alpha: sharpness of the first, untrained assignment; see :func:`fit_centres` for that from data.
    """

    def __init__(self, clusters: int, dim: int, normalise_input: bool = True, alpha: float = 100.0) -> None:
        super().__init__()
        if clusters < 1:
            raise ValueError(f"clusters is {clusters}; NetVLAD needs at least 1")
        self.normalise_input = normalise_input
        self.weight = nn.Parameter(torch.empty(clusters, dim))
        self.bias = nn.Parameter(torch.empty(clusters))
        self.centres = nn.Parameter(torch.empty(clusters, dim))
        self.tie(torch.randn(clusters, dim) / math.sqrt(dim), alpha)

    @torch.no_grad()
    def tie(self, centres: Tensor, alpha: float) -> None:
        """Set the centres (K, D) and tie the assignment to them with sharpness ``alpha``."""
        if centres.shape != self.centres.shape:
            raise ValueError(f"centres are {tuple(centres.shape)}, expected {tuple(self.centres.shape)}")
        self.centres.copy_(centres)
        self.weight.copy_(2.0 * alpha * self.centres)
        self.bias.copy_(-alpha * self.centres.square().sum(1))

    def descriptors(self, x: Tensor) -> Tensor:
        """(B, N, D) as the assignment sees them: float32, of unit length if so asked."""
        return F.normalize(x.float(), dim=2) if self.normalise_input else x.float()

    def assign(self, x: Tensor) -> Tensor:
        """Soft assignment (B, N, K) of prepared descriptors (B, N, D); sums to 1 over K."""
        return torch.softmax(x @ self.weight.t() + self.bias, dim=2)

    def residuals(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """V (B, K, D) before normalisation, of prepared descriptors (B, N, D) weighted by ``weights`` (N,)."""
        share = self.assign(x)
        if weights is not None:
            share = share * weights[None, :, None]
        # sum_n a (x - c) without the (B, N, K, D) tensor of differences
        return share.transpose(1, 2) @ x - share.sum(1)[:, :, None] * self.centres

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """(B, N, D) descriptors and (N,) weights to (B, K * D) of unit length; all-zero residuals stay zero.

        In float32 under mixed precision: squared norms of long vectors overflow float16.
        """
        with torch.autocast(x.device.type, enabled=False):
            rows = F.normalize(self.residuals(self.descriptors(x), weights), dim=2)  # one unit row per cluster
            return F.normalize(rows.flatten(1), dim=1)


def fit_centres(descriptors: Tensor, clusters: int, seed: int = 0, ratio: float = 100.0) -> tuple[Tensor, float]:
    """K-means centres (K, D) of training descriptors (M, D), and the alpha to tie with.

    alpha = ln(ratio) / mean(d2^2 - d1^2), with d1 and d2 a descriptor's distances to its nearest and second centre:
    on average the nearest cluster then gets ``ratio`` times the assignment of the second.

    Raises:
        ValueError: fewer descriptors than clusters, or descriptors that are not finite.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    if not torch.isfinite(descriptors).all():
        raise ValueError("the descriptors for k-means are not finite; check the weights and the images")
    if len(descriptors) < clusters:
        raise ValueError(f"{len(descriptors)} descriptors cannot make {clusters} clusters; lower clusters")
    points = descriptors.detach().cpu().double().numpy()
    with threadpool_limits(1):  # sums of several threads come in any order
        kmeans = KMeans(clusters, n_init=2, max_iter=50, random_state=seed).fit(points)
    centres = torch.from_numpy(kmeans.cluster_centers_).float()
    if clusters == 1:
        return centres, 1.0  # the one cluster gets everything, whatever alpha is
    squared = torch.from_numpy(kmeans.transform(points)).square().sort(dim=1).values
    gap = float((squared[:, 1] - squared[:, 0]).mean())
    # descriptors that (nearly) coincide leave no gap to measure; bound alpha so that w and b stay ordinary numbers
    return centres, math.log(ratio) / max(gap, math.log(ratio) / 1e4)
