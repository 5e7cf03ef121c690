"""Our Grad-CAM beside MONAI's, on the same network and images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from chestflow.imaging.cam import grad_cam, min_max, upsample
from chestflow.methods import registry
from chestflow.methods.registry import InputSpec

METHOD = registry.get("covidnet")
SPEC = InputSpec("cxr", (64, 64), ("rest", "covid19"))


class Logits(nn.Module):
    """The network as MONAI wants it: one tensor out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image).logits


@pytest.mark.parametrize(("setting", "backbone"), [("A", "resnet18"), ("D", "resnet18"), ("D", "squeezenet1_1")])
def test_equals_monai(setting: str, backbone: str) -> None:
    from monai.visualize import GradCAM

    torch.manual_seed(0)
    values = {"setting": setting, "backbone": backbone, "clusters": 4, "hidden": 32, "channels": 1}
    network = METHOD.build(registry.configure(METHOD, values), SPEC).eval()
    with torch.no_grad():
        # an untrained classifier may oppose every feature: then both maps are empty and nothing is compared
        network.classifier.weight.mul_(20)
    images = 255 * torch.rand(3, 1, 64, 96, generator=torch.Generator().manual_seed(1))
    # MONAI's own scaling turns maps upside down; without it the maps themselves are compared
    theirs = GradCAM(
        nn_module=Logits(network).eval(), target_layers="network.backbone", postprocessing=lambda heat: heat
    )
    compared = 0
    for image, index in ((images[i : i + 1], c) for i in range(3) for c in (0, 1)):
        found = upsample(grad_cam(network(image.requires_grad_()), index), (64, 96))
        expected = theirs(image, class_idx=index).detach()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        if expected.max() > expected.min():
            compared += 1
            torch.testing.assert_close(min_max(found), min_max(expected), atol=1e-5, rtol=0)
    assert compared >= 3
