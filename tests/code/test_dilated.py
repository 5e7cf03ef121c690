import pytest
import torch
from torch import nn

from chestflow.nn.dilated import Branch, Dilated, ResidualUnit, ShifterUnit


def test_each_dilation_reads_cells_that_far_away():
    layer = Dilated(1, 3).eval()
    point = torch.zeros(1, 1, 15, 15)
    point[0, 0, 7, 7] = 1.0
    for rate, branch in enumerate(layer.branches, start=1):
        convolution = branch[0]
        nn.init.ones_(convolution.weight)
        nn.init.zeros_(convolution.bias)
        rows = branch(point)[0, 0].sum(1).nonzero().flatten().tolist()
        assert rows == [7 - rate, 7, 7 + rate]


def test_channels_are_convolved_each_by_itself():
    layer = Dilated(2, 1).eval()
    x = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, 1] = 0
    assert torch.equal(layer(x)[:, 0], layer(other)[:, 0])
    assert not torch.equal(layer(x)[:, 1], layer(other)[:, 1])


def test_a_residual_unit_adds_to_its_input():
    unit = ResidualUnit(4, 3).eval()
    nn.init.zeros_(unit[2][0].weight)
    nn.init.constant_(unit[2][0].bias, -1.0)  # below the ReLU: nothing is added
    x = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unit(x), x)


def test_a_shifter_halves_and_doubles():
    assert ShifterUnit(4, 3).eval()(torch.zeros(1, 4, 10, 7)).shape == (1, 8, 5, 3)


@pytest.mark.parametrize(("most", "side", "channels"), [(6, 256, 512), (5, 128, 256), (4, 64, 128), (3, 32, 64)])
def test_published_branches_end_at_8_by_8(most, side, channels):
    with torch.device("meta"):
        branch = Branch(1, most, depth=1)
        assert branch(torch.zeros(1, 1, side, side)).shape == (1, channels, 8, 8)


def test_convolutions_are_counted_by_dilation_and_depth():
    with torch.device("meta"):
        branch = Branch(1, 4, depth=5)
    units = [type(unit).__name__ for unit in branch.units]
    assert units == [*["ResidualUnit"] * 5, "ShifterUnit", *["ResidualUnit"] * 5, "ShifterUnit", *["ResidualUnit"] * 5]
    assert [len(unit[1].branches) for unit in branch.units] == [4] * 6 + [3] * 6 + [2] * 5


def test_what_cannot_be_a_branch_is_refused():
    for most, depth, width in ((1, 1, 32), (3, 0, 32), (3, 1, 1)):
        with pytest.raises(ValueError, match="a branch needs"):
            Branch(1, most, depth, width)
