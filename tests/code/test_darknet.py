import pytest
import torch
from torch import nn

from chestflow.nn.darknet import DarkConv, TripleConv, dark_body, map_side

#: (channels, side) after each convolution for a 256 pixel image, as the published notebook prints them
PRINTED = [
    (8, 256), (16, 128), (32, 64), (16, 66), (32, 66), (64, 33), (32, 35), (64, 35), (128, 17), (64, 19), (128, 19),
    (256, 9), (128, 11), (256, 11), (128, 13), (256, 13),
]  # fmt: skip


def test_every_convolution_has_the_published_shape():
    body = dark_body(3)
    found = []
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: found.append((out.shape[1], out.shape[2])))
    with torch.device("meta"):
        image = torch.zeros(1, 3, 256, 256)
    body.to("meta")(image)
    assert found == PRINTED


@pytest.mark.parametrize("side", [32, 47, 64, 96, 101, 224, 256])
def test_map_side_is_what_the_body_makes(side):
    body = dark_body(1).to("meta")
    assert body(torch.zeros(1, 1, side, side, device="meta")).shape == (1, 256, map_side(side), map_side(side))


def test_a_side_that_vanishes_is_zero():
    assert map_side(1) == 0
    assert map_side(2) == 0


def test_a_dark_convolution_is_convolution_norm_and_leak():
    block = DarkConv(2, 3).eval()
    x = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    by_hand = torch.nn.functional.conv2d(x, block[0].weight, padding=1) / (1 + 1e-5) ** 0.5
    by_hand = torch.where(by_hand > 0, by_hand, 0.1 * by_hand)
    torch.testing.assert_close(block(x), by_hand)
    assert block[0].bias is None


def test_the_padded_1x1_convolution_sees_zeros_at_its_rim():
    block = DarkConv(1, 1, kernel=1).eval()
    out = block(torch.ones(1, 1, 3, 3))
    assert out.shape == (1, 1, 5, 5)
    assert torch.equal(out[0, 0, 0], torch.zeros(5))
    assert out[0, 0, 1:4, 1:4].abs().min() > 0


def test_a_triple_narrows_in_the_middle():
    convolutions = [m for m in TripleConv(16, 32).modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convolutions] == [
        (16, 32, 3),
        (32, 16, 1),
        (16, 32, 3),
    ]
