"""Inf-Net: sizes, counts, what reverse attention does, weights from files, and that it learns."""

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from chestflow.errors import ConfigError
from chestflow.losses.structure import deep_supervision_loss
from chestflow.nn.inf_net import WIDTHS, InfNet, SegmentationOutput
from chestflow.nn.partial_decoder import PartialDecoder
from chestflow.nn.receptive_field import ConvNorm, ReceptiveFieldBlock
from chestflow.nn.res2net import Res2Net50
from chestflow.nn.reverse_attention import ReverseAttention

CLASSIFIER = 2048 * 1000 + 1000  # of ImageNet, which the published code carries along and never calls


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def slices(n: int, size: int = 64, seed: int = 3) -> torch.Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 255


@pytest.fixture(scope="module")
def small() -> InfNet:
    torch.manual_seed(1)
    return InfNet("resnet18").eval()


def test_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = InfNet()
    assert count(network.backbone) == 23_669_352
    assert count(network) == 31_072_721
    assert count(network) + CLASSIFIER == 33_121_721


def test_other_numbers_of_parameters() -> None:
    with torch.device("meta"):
        assert count(InfNet("resnet18")) == 12_655_337
        assert count(InfNet("resnet18", classes=2)) - count(InfNet("resnet18")) == 97 * 64 * 9 + 2 * 64 + 64 * 3 + 3
        assert count(InfNet(channel=16)) < count(InfNet())


@pytest.mark.parametrize(
    ("backbone", "size"),
    [*[("res2net50", (side, side)) for side in (256, 352, 448)], *[(name, (64, 96)) for name in WIDTHS]],
)
def test_five_outputs_at_the_inputs_size(backbone: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        output = InfNet(backbone)(torch.empty(2, 1, *size))
    assert [tuple(s.shape) for s in output.maps] == [(2, 1, *size)] * 4
    assert output.edge.shape == (2, 1, *size)
    assert output.features.shape == (2, 64, size[0] // 8, size[1] // 8)
    assert output.kinds is None
    assert output.logits is output.maps[3]


@pytest.mark.parametrize("shape", [(1, 1, 360, 360), (1, 1, 368, 368), (1, 1, 352, 360), (1, 1, 32, 32), (1, 352, 352)])
def test_sizes_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = InfNet("resnet18")
        with pytest.raises(ValueError, match="multiples of 32"):
            network(torch.empty(shape))


def test_three_channels_that_are_no_grey_picture_are_refused() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="expected images"):
        InfNet("resnet18")(torch.empty(1, 2, 64, 64))


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="densenet169"):
        InfNet("densenet169")
    with torch.device("meta"):
        with pytest.raises(ConfigError, match="at least 1"):
            InfNet("resnet18", classes=0)
        with pytest.raises(ConfigError, match="at least 1"):
            InfNet("resnet18", channel=0)
        with pytest.raises(ConfigError, match="res2net50d"):
            InfNet(weights="imagenet")


def test_grey_values_are_standardised_inside(small: InfNet) -> None:
    seen = small.input(torch.full((1, 1, 2, 2), 255.0))
    assert torch.allclose(
        seen[0, :, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    )


def test_an_image_gets_the_same_answer_alone_as_in_a_batch(small: InfNet) -> None:
    images = slices(3)
    with torch.no_grad():
        together = small(images)
        alone = [small(image[None]) for image in images]
    for index in range(4):
        assert torch.allclose(together.maps[index], torch.cat([o.maps[index] for o in alone]), atol=1e-5)
    assert torch.allclose(together.edge, torch.cat([o.edge for o in alone]), atol=1e-5)


def test_two_seeds_alike_give_the_same_network(small: InfNet) -> None:
    torch.manual_seed(1)
    again = InfNet("resnet18").eval()
    with torch.no_grad():
        assert torch.equal(again(slices(1)).logits, small(slices(1)).logits)


@pytest.mark.parametrize("classes", [1, 2])
def test_every_parameter_gets_a_finite_gradient(classes: int) -> None:
    torch.manual_seed(2)
    network = InfNet("resnet18", classes=classes).train()
    output = network(slices(2))
    mask = torch.zeros(2, 1, 64, 64)
    mask[:, :, 20:30, 20:40] = 1
    labels = mask[:, 0].long() if classes > 1 else None
    deep_supervision_loss(output, mask, labels=labels).total.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_features_reach_the_answer_for_grad_cam(small: InfNet) -> None:
    output = small(slices(1))
    (gradient,) = torch.autograd.grad(output.logits.sum(), output.features)
    assert gradient.abs().sum() > 0
    assert (output.features >= 0).all()


def test_between_two_convolutions_there_is_no_relu() -> None:
    layer = ConvNorm(2, 4, 3).eval()
    y = layer(torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert y.min() < 0 < y.max()
    assert layer[0].bias is None


def test_a_branch_of_the_receptive_field_block_sees_as_far_as_its_kernels() -> None:
    block = ReceptiveFieldBlock(1, 2).eval()
    for branch, k in zip(block.branches, (1, 3, 5, 7), strict=True):
        x = torch.zeros(1, 1, 41, 41, requires_grad=True)
        branch(x)[0, :, 20, 20].sum().backward()
        reach = 20 - torch.nonzero(x.grad[0, 0].abs().sum(1)).min()
        # a 1xk, a kx1 and a 3x3 of dilation k: (k - 1) / 2 + k to each side
        assert reach == (0 if k == 1 else (k - 1) // 2 + k)
    assert block(torch.randn(1, 1, 12, 12)).shape == (1, 2, 12, 12)


def test_the_partial_decoder_returns_the_finest_inputs_size() -> None:
    decoder = PartialDecoder(4).eval()
    deep, middle, fine = (torch.randn(2, 4, side, side + 1) for side in (3, 6, 12))
    with pytest.raises(RuntimeError):
        decoder(deep, middle, fine)  # 3 x 4 doubled is not 6 x 7
    assert decoder(deep, torch.randn(2, 4, 6, 8), torch.randn(2, 4, 12, 16)).shape == (2, 1, 12, 16)


def test_reverse_attention_erases_what_is_found_already() -> None:
    torch.manual_seed(4)
    stage = ReverseAttention(6, 8).eval()
    features, guidance = torch.randn(1, 6, 8, 8), torch.randn(1, 64, 32, 32)
    found = torch.full((1, 1, 4, 4), 60.0)
    with torch.no_grad():
        one, _ = stage(features, found, guidance)
        other, _ = stage(5 * features + 1, found, guidance)
        assert torch.equal(one, other)  # no feature is left where all is found
        missed, _ = stage(features, -found, guidance)
        changed, _ = stage(5 * features + 1, -found, guidance)
        assert not torch.allclose(missed, changed)


def test_a_stage_corrects_the_coarser_map_by_addition() -> None:
    stage = ReverseAttention(6, 8).eval()
    nn.init.zeros_(stage.score[0].weight)
    coarser = torch.randn(1, 1, 4, 4)
    with torch.no_grad():
        finer, _ = stage(torch.randn(1, 6, 8, 8), coarser, torch.randn(1, 64, 8, 8))
    expected = nn.functional.interpolate(coarser, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(finer, expected, atol=1e-6)


def test_kinds_lie_inside_the_infection_alone() -> None:
    maps = (torch.tensor([[[[2.0, -2.0, 2.0]]]]),)
    kinds = torch.tensor([[9.0, 9.0, 9.0], [1.0, 5.0, 0.0], [0.0, 0.0, 1.0]])[None, :, None]
    output = SegmentationOutput(maps, kinds=kinds)
    assert output.kind().tolist() == [[[1, 0, 2]]]  # background never wins inside, nor a kind outside
    with pytest.raises(ValueError, match="classes"):
        SegmentationOutput(maps).kind()


def test_the_second_head_does_not_push_the_first_ones_map() -> None:
    torch.manual_seed(5)
    network = InfNet("resnet18", classes=2).eval()
    output = network(slices(1))
    assert output.kinds.shape == (1, 3, 64, 64)
    output.kinds.sum().backward()
    assert network.reverse2.score[0].weight.grad is None  # its result is read with the gradient cut


def test_probabilities_are_not_stretched_by_their_own_range() -> None:
    output = SegmentationOutput((torch.full((1, 1, 4, 4), -8.0) + torch.rand(1, 1, 4, 4),))
    assert output.probability().max() < 0.001
    half = SegmentationOutput((torch.zeros(1, 1, 2, 2, dtype=torch.float16),)).probability()
    assert half.dtype == torch.float32


def test_res2nets_weights_load_by_timms_names(tmp_path) -> None:
    torch.manual_seed(7)
    state = Res2Net50().state_dict()  # a stand-in: random numbers in timm's layout
    torch.save(state, tmp_path / "res2net50d.pth")
    network = InfNet(weights=str(tmp_path / "res2net50d.pth"))
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_resnets_weights_load_by_torchvisions_names(tmp_path) -> None:
    torch.manual_seed(7)
    state = get_model("resnet18", weights=None).state_dict()  # a stand-in: random numbers in torchvision's layout
    torch.save(state, tmp_path / "resnet18.pth")
    network = InfNet("resnet18", weights=tmp_path / "resnet18.pth")
    assert torch.equal(network.backbone.trunk.conv1.weight, state["conv1.weight"])


def learn(steps: int, lr: float, score_norm: bool) -> tuple[list[float], list[float], torch.Tensor, torch.Tensor]:
    """Total losses, the finest map's losses, the found infection, and the truth, of which the fourth is healthy."""
    torch.manual_seed(9)
    network = InfNet("resnet18", channel=8, score_norm=score_norm).train()
    mask = torch.zeros(4, 1, 64, 64)
    for index in range(3):
        top = 10 + 8 * index
        mask[index, :, top : top + 18, 16:40] = 1
    images = slices(4) * 0.3 + 120 * mask
    optimiser = torch.optim.Adam(network.parameters(), lr=lr)
    totals, finest = [], []
    for _ in range(steps):
        parts = deep_supervision_loss(network(images), mask)
        optimiser.zero_grad()
        parts.total.backward()
        optimiser.step()
        totals.append(parts.total.item())
        finest.append(parts.maps[-1].item())
    with torch.no_grad():
        return totals, finest, network(images).probability() > 0.5, mask > 0


def test_a_tiny_example_is_learnt() -> None:
    totals, finest, found, truth = learn(18, 3e-3, score_norm=False)
    assert totals[-1] < 0.6 * totals[0]  # the coarsest map has 2 x 2 cells here and cannot outline anything
    assert finest[-1] < 0.2 * finest[0]
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9
    assert not found[3].any()


def test_the_published_form_learns_too_but_its_logits_grow_slowly() -> None:
    totals, finest, *_ = learn(6, 3e-3, score_norm=True)
    assert totals[-1] < 0.85 * totals[0]
    assert finest[-1] > 0.3


def test_a_score_without_batch_norm_is_a_convolution_with_bias() -> None:
    with torch.device("meta"):
        plain, published = InfNet("resnet18", score_norm=False), InfNet("resnet18")
    assert count(plain) == count(published) - 4  # a bias for each batch norm's factor and shift, in four layers
