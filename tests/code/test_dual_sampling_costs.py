"""What paper 004's network costs, on the meta device: multiplications and what training keeps of a volume.

How each is counted: :mod:`tests.costs`. The paper's volume has 138 x 256 x 256 voxels. With the attention branch what
is kept goes up to the soft mask T(A) of eq. 2, without the loss on it: three maps of the volume's size.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chestflow.losses.attention import soft_mask
from chestflow.methods.dual_sampling import DualSamplingConfig, DualSamplingNetwork
from tests.costs import kept, multiplications

PAPER = (1, 138, 256, 256)
SMALL = (1, 32, 64, 64)


class Attended(nn.Module):
    """The network and the soft mask of its map, at the volume's size."""

    def __init__(self, network: DualSamplingNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        attention = self.network(image).attention
        assert attention is not None
        return soft_mask(attention, tuple(image.shape[2:]))


def build(**options: Any) -> DualSamplingNetwork:
    with torch.device("meta"):
        return DualSamplingNetwork(DualSamplingConfig(**options))


@pytest.mark.parametrize(
    ("options", "shape", "billions", "digit"),
    [
        ({}, PAPER, 318.2, 0.1),
        ({"last_stride": 2}, PAPER, 240.7, 0.1),
        ({"stem_stride_z": 1}, PAPER, 630, 1),
        ({}, SMALL, 4.5, 0.1),
    ],
)
def test_multiplications_of_a_volume(
    options: dict[str, int], shape: tuple[int, ...], billions: float, digit: float
) -> None:
    assert multiplications(build(**options), *shape) == pytest.approx(billions, abs=digit / 2)


def test_training_keeps_1379_mebibytes_of_the_papers_volume_and_1483_with_the_soft_mask() -> None:
    network = build()
    assert kept(network, *PAPER) == pytest.approx(1379, abs=0.5)
    each = kept(Attended(network), *PAPER)
    assert each == pytest.approx(1483, abs=0.5)
    assert 20 * each / 1024 == pytest.approx(29, abs=0.5)  # GiB of the paper's batch


def test_training_keeps_21_mebibytes_of_a_small_volume() -> None:
    """With the soft mask; 19.8 without."""
    assert kept(Attended(build()), *SMALL) == pytest.approx(21, abs=0.5)


def test_a_first_stride_of_1_along_z_doubles_what_training_keeps() -> None:
    """2.8 thousand MiB with the soft mask, which are 2.7 GiB."""
    assert kept(Attended(build(stem_stride_z=1)), *PAPER) / 1000 == pytest.approx(2.8, abs=0.05)
