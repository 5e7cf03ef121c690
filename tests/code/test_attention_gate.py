"""The attention gate: bounds, both readings, and that it varies over height and width."""

from __future__ import annotations

import pytest
import torch

from chestflow.nn.attention_gate import AttentionGate


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 6, 8, 10, generator=torch.Generator().manual_seed(0))


def test_it_never_amplifies(x: torch.Tensor) -> None:
    gate = AttentionGate(6)
    weight = gate.coefficients(x, x.flip(0))
    assert weight.shape == (2, 1, 8, 10)
    assert weight.min() > 0
    assert weight.max() < 1
    out = gate(x, x.flip(0))
    assert out.shape == x.shape
    assert (out.abs() <= x.abs()).all()


def test_the_added_reading_cannot_suppress(x: torch.Tensor) -> None:
    gate = AttentionGate(6, reading="add")
    assert ((gate(x, x) - x) > 0).all()


def test_a_zero_psi_scales_by_the_biass_sigmoid(x: torch.Tensor) -> None:
    gate = AttentionGate(6)
    torch.nn.init.zeros_(gate.psi.weight)
    torch.nn.init.constant_(gate.psi.bias, 0.7)
    assert torch.allclose(gate(x, x), x * torch.sigmoid(torch.tensor(0.7)))


def test_it_is_the_formula(x: torch.Tensor) -> None:
    gate, g = AttentionGate(6, inner=3), x.flip(3)
    one = torch.einsum("oi,bihw->bohw", gate.theta.weight[:, :, 0, 0], x) + gate.theta.bias[None, :, None, None]
    two = torch.einsum("oi,bihw->bohw", gate.phi.weight[:, :, 0, 0], g) + gate.phi.bias[None, :, None, None]
    score = torch.einsum("i,bihw->bhw", gate.psi.weight[0, :, 0, 0], (one + two).relu()) + gate.psi.bias
    assert torch.allclose(gate(x, g), x * torch.sigmoid(score)[:, None], atol=1e-6)


@pytest.mark.parametrize("axis", [2, 3])
def test_the_map_varies_over_rows_and_columns(axis: int) -> None:
    """The published code mixes rows as if they were channels, and weighs all rows of a column alike."""
    torch.manual_seed(1)
    steps = torch.linspace(-3, 3, 9)
    x = steps.view(1, 1, -1, 1).expand(1, 4, 9, 9) if axis == 2 else steps.view(1, 1, 1, -1).expand(1, 4, 9, 9)
    weight = AttentionGate(4).coefficients(x, torch.zeros_like(x))[0, 0]
    assert weight.std(axis - 2).max() > 1e-3
    assert weight.std(3 - axis).max() < 1e-6


def test_a_signal_of_another_size_is_resampled(x: torch.Tensor) -> None:
    gate, constant = AttentionGate(6), torch.full((2, 6, 1, 1), 0.3)
    small = gate(x, constant.expand(2, 6, 4, 5))
    assert torch.allclose(small, gate(x, constant.expand(2, 6, 8, 10)), atol=1e-6)


def test_gradients_reach_everything(x: torch.Tensor) -> None:
    gate = AttentionGate(6)
    gate(x, x.flip(0)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gate.parameters())


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="reading"):
        AttentionGate(4, reading="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inner"):
        AttentionGate(4, inner=0)
