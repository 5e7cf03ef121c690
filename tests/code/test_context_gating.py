import pytest
import torch

from chestflow.nn.context_gating import ContextGating


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", [False, True])
def test_never_larger_and_never_of_another_sign(norm):
    gate, x = ContextGating(32, norm), 5 * vectors(16, 32)
    out = gate(x)
    assert (out.abs() <= x.abs()).all()
    assert (out.sign() * x.sign() >= 0).all()


def test_matches_the_formula():
    gate, x = ContextGating(8), vectors(4, 8)
    w, b = gate.linear.weight, gate.linear.bias
    torch.testing.assert_close(gate(x), torch.sigmoid(x @ w.t() + b) * x)


def test_zero_gate_halves():
    gate, x = ContextGating(8), vectors(4, 8)
    torch.nn.init.zeros_(gate.linear.weight)
    torch.testing.assert_close(gate(x), x / 2)
    torch.testing.assert_close(gate(x).norm(dim=1), x.norm(dim=1) / 2)


def test_starts_open_about_half_with_a_gradient():
    torch.manual_seed(0)
    gate, x = ContextGating(512), torch.nn.functional.normalize(vectors(16, 512), dim=1)
    out = gate(x)
    assert float(out.norm() / x.norm()) == pytest.approx(0.5, abs=0.05)
    out.square().sum().backward()
    assert gate.linear.weight.grad.abs().sum() > 0
    assert float(gate.linear.weight.std()) == pytest.approx(512**-0.5, rel=0.02)


def test_norm_takes_the_place_of_the_bias():
    gate = ContextGating(8, norm=True)
    assert gate.linear.bias is None
    one = gate.train()(vectors(1, 8))  # a last batch of one image
    torch.testing.assert_close(one, gate.eval()(vectors(1, 8)))
