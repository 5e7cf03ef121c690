"""PEPX blocks, their stages and the encoder of paper 000: counts, shapes, and who is wired to whom."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chestflow.nn.pepx import PEPX, PepxStyle, he_init
from chestflow.nn.pepx_encoder import PepxEncoder

SMALL = {"widths": (4, 6, 8, 10), "depths": (3, 4, 6, 3), "encoded": 12}


def count(module: nn.Module, part: str = "") -> int:
    return sum(p.numel() for name, p in module.named_parameters() if part in name)


@pytest.fixture(scope="module")
def full() -> PepxEncoder:
    with torch.device("meta"):
        return PepxEncoder((480, 480))


def test_parameters_at_480_pixels(full: PepxEncoder) -> None:
    assert full.fc.weight.numel() == 97_689_600
    assert count(full, "gate") == 486_652
    assert count(full) - count(full.fc) == 4_063_972


def test_maps_at_480_pixels_are_120_60_30_15(full: PepxEncoder) -> None:
    seen = []
    for stage in full.stages:
        stage.blocks[0].register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    features, h = full(torch.zeros(2, 3, 480, 480, device="meta"))
    assert seen == [(56, 120, 120), (112, 60, 60), (216, 30, 30), (424, 15, 15)]
    assert tuple(features.shape) == (2, 424, 15, 15)
    assert tuple(h.shape) == (2, 1024)


def test_at_224_pixels_the_last_map_has_20776_values() -> None:
    with torch.device("meta"):
        encoder = PepxEncoder((224, 224))
    assert encoder.flattened == 20_776


def test_a_blocks_widths_follow_its_mode() -> None:
    repo, covidnet = PEPX(8, 12), PEPX(8, 12, PepxStyle("covidnet"))
    assert [c.out_channels for c in repo.modules() if isinstance(c, nn.Conv2d)] == [12, 12, 12, 12, 12]
    assert [c.out_channels for c in covidnet.modules() if isinstance(c, nn.Conv2d)] == [4, 6, 6, 4, 12]
    x = torch.rand(2, 8, 9, 7)
    for block in (repo, covidnet):
        assert block(x).shape == (2, 12, 9, 7)
        assert block(x).min() >= 0
        depthwise = next(c for c in block.modules() if isinstance(c, nn.Conv2d) and c.groups > 1)
        assert depthwise.groups == depthwise.in_channels
        assert depthwise.bias is not None


def test_the_depthwise_convolution_is_linear_unless_asked_for() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 6, 8, 8)
    assert PEPX(6, 6).depthwise(x).min() < 0
    assert PEPX(6, 6, PepxStyle(dw_act=True)).depthwise(x).min() >= 0
    assert sum(isinstance(m, nn.BatchNorm2d) for m in PEPX(6, 6, PepxStyle(norm="batch")).modules()) == 5


def test_the_last_block_reaches_the_answer_through_the_gate_alone() -> None:
    """With the gate's map held fixed, nothing depends on the last stage's last block in the repo's wiring."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64)
    for kind, alone in (("repo", True), ("residual", False)):
        encoder = PepxEncoder((64, 64), **SMALL, final_gate=kind)  # type: ignore[arg-type]
        last = encoder.stages[-1].blocks[-1].extend[0]
        assert encoder.gate is not None
        weight = encoder.gate.psi.weight
        encoder(x)[0].sum().backward()
        assert last.weight.grad.abs().sum() > 0
        last.weight.grad = None
        with torch.no_grad():
            weight.zero_()  # the map is now sigmoid(bias) whatever it sees
        encoder(x)[0].sum().backward()
        assert (float(last.weight.grad.abs().sum()) == 0.0) is alone


def test_the_last_stages_last_block_sees_one_block_unless_dense() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 64, 64)
    for dense in (False, True):
        encoder = PepxEncoder((64, 64), **SMALL, dense_last=dense)  # type: ignore[arg-type]
        inputs: dict[str, torch.Tensor] = {}
        stage = encoder.stages[-1]
        stage.blocks[-1].register_forward_hook(lambda _, given, __, to=inputs: to.update(last=given[0]))
        stage.blocks[-2].register_forward_hook(lambda _, __, out, to=inputs: to.update(before=out))
        encoder(x)
        assert torch.equal(inputs["last"], inputs["before"]) is not dense


def test_without_gates_there_are_none_and_the_sum_is_taken() -> None:
    encoder = PepxEncoder((64, 64), **SMALL, gates=False)  # type: ignore[arg-type]
    assert not [name for name, _ in encoder.named_modules() if "gate" in name and name != "gate"]
    assert encoder(torch.rand(1, 3, 64, 64))[1].shape == (1, 12)


@pytest.mark.parametrize("size", [(32, 32), (96, 64), (70, 100)])
def test_any_size_from_32_pixels_works(size: tuple[int, int]) -> None:
    encoder = PepxEncoder(size, **SMALL)  # type: ignore[arg-type]
    features, h = encoder(torch.rand(2, 3, *size))
    assert features.shape[2:] == (size[0] // 32, size[1] // 32)
    assert h.min() >= 0


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 pixels"):
        PepxEncoder((31, 64))
    with pytest.raises(ValueError, match="different numbers of stages"):
        PepxEncoder((64, 64), widths=(4, 4), depths=(2,))
    with pytest.raises(ValueError, match="final_gate"):
        PepxEncoder((64, 64), final_gate="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none before the last"):
        PepxEncoder((64, 64), widths=(4, 4), depths=(1, 2))
    with pytest.raises(ValueError, match="made for"):
        PepxEncoder((64, 64), **SMALL)(torch.rand(1, 3, 96, 96))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode"):
        PepxStyle("wide")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gain"):
        PepxStyle(gain=0.0)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_gain_is_a_blocks_first_strength_and_outlives_he(norm: str) -> None:
    x = torch.rand(4, 6, 9, 9)
    means = {}
    for gain in (1.0, 0.1):
        block = PEPX(6, 8, PepxStyle(norm=norm, gain=gain))  # type: ignore[arg-type]
        torch.manual_seed(0)
        he_init(block)
        means[gain] = float(block(x).mean().detach())
    assert means[0.1] == pytest.approx(0.1 * means[1.0], rel=1e-4)
