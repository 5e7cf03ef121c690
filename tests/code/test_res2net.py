"""Res2Net-50 v1b: its maps against timm's, its blocks, and weights from files in timm's and the authors' layout."""

import pytest
import torch
from safetensors.torch import save_file

from chestflow.errors import TrainingError
from chestflow.nn.res2net import Bottle2neck, Res2Net50, load_weights


def test_the_maps_inside_at_352_pixels() -> None:
    with torch.device("meta"):
        maps = Res2Net50().pyramid(torch.empty(1, 3, 352, 352))
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 88, 88), (512, 44, 44), (1024, 22, 22), (2048, 11, 11)]


@pytest.mark.parametrize("first", [True, False])
def test_groups_of_a_block_are_a_cascade_except_in_a_stages_first(first: bool) -> None:
    torch.manual_seed(6)
    block = Bottle2neck(256, 64, first=first).eval()
    seen: list[torch.Tensor] = []
    for conv in block.convs:
        conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(1, 256, 6, 6)
    with torch.no_grad():
        block(x)
        assert len(seen) == 3
        groups = torch.relu(block.bn1(block.conv1(x))).split(26, dim=1)
        before = torch.relu(block.bns[0](block.convs[0](groups[0])))
    assert torch.equal(seen[0], groups[0])
    assert torch.equal(seen[1], groups[1] if first else before + groups[1])


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random tensors in the place of pretrained weights: the layout is timm's, the numbers mean nothing."""
    torch.manual_seed(7)
    return Res2Net50().state_dict() | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def network() -> Res2Net50:
    return Res2Net50()


@pytest.mark.parametrize("form", ["torch", "safetensors", "data parallel, without batch counts"])
def test_weights_load_without_the_classifier(tmp_path, network, state, form) -> None:
    with torch.no_grad():
        network.layer4[2].bn3.weight.fill_(-1)
        network.conv1[0].weight.zero_()
    if form == "safetensors":
        path = tmp_path / "res2net50d.safetensors"
        save_file(state, path)
    else:
        path = tmp_path / "res2net50d.pth"
        old = {"module." + k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        torch.save(state if form == "torch" else {"state_dict": old}, path)
    load_weights(network, path)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_weights_of_another_network_are_refused(tmp_path, network, state) -> None:
    path = tmp_path / "res2net50d.pth"
    torch.save({k: v for k, v in state.items() if k != "layer3.5.conv3.weight"}, path)
    with pytest.raises(TrainingError, match=r"layer3\.5\.conv3\.weight"):
        load_weights(network, path)
    torch.save(state | {"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)  # the plain v1 form has one convolution
    with pytest.raises(TrainingError, match="res2net50d"):
        load_weights(network, path)
    with pytest.raises(TrainingError, match="do not exist"):
        load_weights(network, tmp_path / "missing.pth")


def by_formula(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by formula: each from its place in its tensor, and the tensor's place among the names."""
    made = {}
    for number, name in enumerate(sorted(state)):
        like = state[name]
        place = torch.arange(like.numel(), dtype=torch.int64)
        share = ((31 * place * place + 7919 * place + 104729 * number) % 65521).double().view(like.shape) / 65521 - 0.5
        if name.endswith("num_batches_tracked"):
            made[name] = like
        elif name.endswith("running_var"):
            made[name] = (1 + share).float()
        elif like.ndim == 1:
            made[name] = ((0 if name.endswith(("bias", "running_mean")) else 1) + 0.4 * share).float()
        else:
            made[name] = (share * (24 / like[0].numel()) ** 0.5).float()
    return made


def picture() -> torch.Tensor:
    """(1, 3, 64, 96) in [-1, 1], by formula."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    return torch.stack([torch.sin(0.07 * k * y + 0.11 * x) for k in (1, 2, 3)])[None]


#: Of timm 1.0.31's ``res2net50d`` with the weights and the picture above, a row for each of the four maps: mean,
#: deviation, and the values at channel i c / 4 + 1, row i, column i from the right, for i from 0 to 3 of c channels.
TIMMS = [
    [3.15476, 4.57646, 3.98026, 4.01595, 0.0, 5.19408],
    [48.9668, 74.4128, 0.0, 0.455849, 0.0, 0.0],
    [5702.79, 7587.32, 4335.62, 471.118, 9751.6, 3326.12],
    [25829.3, 35219.1, 127833.0, 26545.1, 20803.5, 0.0],
]


def test_the_maps_are_timms_res2net50ds() -> None:
    network = Res2Net50().eval()
    network.load_state_dict(by_formula(network.state_dict()))
    with torch.no_grad():
        maps = network.pyramid(picture())
    for found, expected in zip(maps, TIMMS, strict=True):
        places = [
            found[0, i * found.shape[1] // 4 + 1, i % found.shape[2], -1 - i % found.shape[3]].item() for i in range(4)
        ]
        assert [found.mean().item(), found.std().item(), *places] == pytest.approx(expected, rel=2e-3, abs=1e-4)
