"""What paper 003's networks cost, on the meta device: parameters, multiplications, what training keeps of a picture.

How each is counted: :mod:`tests.costs`. Pictures have 224 pixels a side for the classifiers.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chestflow.nn.backbones import CHANNELS, Backbone
from chestflow.nn.inf_net import InfNet
from tests.costs import kept, multiplications
from tests.model.knowledge_slices import build, slices

CLASSES = 1000


@pytest.mark.parametrize(
    ("name", "millions", "billions", "mebibytes"), [("densenet169", 14.15, 3.36, 150), ("resnet50", 25.6, 4.09, 82)]
)
def test_a_classifiers_backbone(name: str, millions: float, billions: float, mebibytes: float) -> None:
    with torch.device("meta"):
        backbone = Backbone(name)
    head = (CHANNELS[name] + 1) * CLASSES  # the stated numbers count ImageNet's, which is not built
    assert (sum(p.numel() for p in backbone.parameters()) + head) / 1e6 == pytest.approx(millions, abs=0.05)
    assert multiplications(backbone, 3, 224, 224) == pytest.approx(billions, abs=0.005)
    assert kept(backbone, 3, 224, 224) == pytest.approx(mebibytes, abs=1)


def test_inf_net() -> None:
    with torch.device("meta"):
        network = InfNet()
    assert multiplications(network, 1, 352, 352) == pytest.approx(13.84, abs=0.005)
    assert kept(network, 1, 352, 352) == pytest.approx(318, abs=1)
    assert kept(network, 1, 448, 448) == pytest.approx(515, abs=1)


def test_an_answer_takes_four_passes_of_13_4_billion_together() -> None:
    network = build().eval()
    image, infection = slices(1)  # infected on both sides
    seen: list[int] = []
    for module in network.modules():
        if isinstance(module, Backbone):
            module.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    with torch.no_grad():
        network(image, None, infection)
    assert sorted(seen) == [1, 1, 2]
    with torch.device("meta"):
        backbone = Backbone("densenet169")
    assert sum(seen) * multiplications(backbone, 3, 224, 224) == pytest.approx(13.4, abs=0.05)


def test_densenets_published_features_are_negative_in_part_and_the_backbones_are_not() -> None:
    """The stated minimum, -9.4, is one random network's; with this one it is another, as far below zero."""
    torch.manual_seed(0)
    backbone, x = Backbone("densenet169").eval(), torch.randn(1, 3, 64, 64)
    assert isinstance(backbone.trunk.features[-1], nn.BatchNorm2d)  # no ReLU behind it
    with torch.no_grad():
        before, after = backbone.trunk.features(x), backbone(x)
    assert -30 < float(before.min()) < -3
    assert torch.equal(after, before.relu())
