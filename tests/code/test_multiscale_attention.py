"""The attention maps: sizes, signs, parameters, and which scales a backbone has."""

import pytest
import torch
import torch.nn.functional as F

from chestflow.errors import ConfigError
from chestflow.nn.multiscale_attention import MultiscaleAttention, pyramid_shapes, scale_shapes


def features(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, *shape, generator=generator) for shape in shapes]


def test_equals_the_formula_written_out():
    torch.manual_seed(0)
    attention = MultiscaleAttention((3, 5), maps=4).eval()
    for branch in attention.branches:
        branch[1].running_mean.uniform_(-1, 1)
        branch[1].running_var.uniform_(0.5, 2)
        branch[1].bias.data.uniform_(-1, 1)
    fine, coarse = features((3, 6, 8), (5, 3, 4))
    expected = torch.zeros(2, 4, 3, 4)
    for feature, branch, cells in ((fine, attention.branches[0], 2), (coarse, attention.branches[1], 1)):
        conv, norm, _ = branch
        mixed = torch.einsum("mc,bchw->bmhw", conv.weight[:, :, 0, 0], feature)
        spread = (norm.running_var + 1e-3).sqrt()
        normed = (mixed - norm.running_mean[:, None, None]) / spread[:, None, None] + norm.bias[:, None, None]
        positive = normed.clamp_min(0)
        blocks = positive.unflatten(3, (4, cells)).unflatten(2, (3, cells))  # (B, M, 3, cells, 4, cells)
        expected += blocks.mean((3, 5))
    torch.testing.assert_close(attention([fine, coarse]), expected)


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_maps_have_the_last_size_and_no_negative_value(scales):
    torch.manual_seed(0)
    channels, sides = (4, 6, 8)[-scales:], (28, 14, 7)[-scales:]
    maps = MultiscaleAttention(channels)(features(*((c, s, s) for c, s in zip(channels, sides, strict=True))))
    assert maps.shape == (2, 32, 7, 7)
    assert maps.min() >= 0
    assert maps.max() > 0


def test_pooling_follows_the_relu():
    attention = MultiscaleAttention((1, 1), maps=1).eval()
    torch.nn.init.ones_(attention.branches[0][0].weight)
    torch.nn.init.zeros_(attention.branches[1][0].weight)
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[None, None]  # averages to 0 before the ReLU and to 0.5 after it
    found = attention([checks, torch.zeros(1, 1, 1, 1)])
    assert float(found.detach()) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("channels", "count"), [((2048,), 65_600), ((1024, 2048), 98_432), ((512, 1024, 2048), 114_880)]
)
def test_parameter_counts(channels, count):
    with torch.device("meta"):
        attention = MultiscaleAttention(channels)
    assert sum(p.numel() for p in attention.parameters()) == count
    assert all(branch[0].bias is None and branch[1].eps == 1e-3 for branch in attention.branches)


def test_the_paper_has_maps_of_28_14_and_7():
    assert pyramid_shapes("resnet50", 1, (224, 224))[1:] == [(512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    assert scale_shapes("resnet50", 1, (224, 224), (7, 14)) == [(1024, 14, 14), (2048, 7, 7)]
    assert scale_shapes("resnet18", 1, (96, 96), (7, 14)) == [(256, 6, 6), (512, 3, 3)]
    assert scale_shapes("resnet18", 1, (96, 128), (7,)) == [(512, 3, 4)]


@pytest.mark.parametrize(
    ("backbone", "size", "scales", "message"),
    [
        ("resnet18", (100, 100), (7, 14), "multiple of 32"),
        ("resnet18", (96, 112), (7, 14), "multiple of 32"),
        ("squeezenet1_1", (224, 224), (7, 14), "divide evenly"),
        ("resnet18", (224, 224), (7, 14, 28, 56, 112), "has 4 maps"),
        ("squeezenet1_1", (8, 8), (7,), "cannot read"),
    ],
)
def test_scales_that_a_backbone_lacks_are_refused(backbone, size, scales, message):
    with pytest.raises(ConfigError, match=message):
        scale_shapes(backbone, 1, size, scales)


def test_maps_that_do_not_fit_are_refused():
    attention = MultiscaleAttention((2, 2))
    with pytest.raises(ValueError, match="evenly"):
        attention(features((2, 7, 7), (2, 4, 4)))
    with pytest.raises(ValueError, match="evenly"):
        attention(features((2, 8, 4), (2, 4, 4)))
    with pytest.raises(ValueError, match="1 feature maps for 2"):
        attention(features((2, 4, 4)))
    with pytest.raises(ValueError, match="at least 1"):
        MultiscaleAttention(())


def test_every_scale_learns():
    attention = MultiscaleAttention((3, 4), maps=2)
    F.mse_loss(attention(features((3, 4, 4), (4, 2, 2))), torch.ones(2, 2, 2, 2)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in attention.parameters())
