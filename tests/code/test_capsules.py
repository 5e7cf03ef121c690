import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chestflow.nn.capsules import CapsuleLayer, lengths, margin_loss, route, squash


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(1e-2, 1e3))
def test_squash_keeps_the_direction_and_stays_below_one(seed, scale):
    s = draw(4, 8, seed=seed, scale=scale)
    v = squash(s)
    norm, length = v.norm(dim=-1), s.norm(dim=-1)
    assert (squash(s.double()).norm(dim=-1) < 1).all()  # float32 rounds the longest to 1
    torch.testing.assert_close(norm, length**2 / (1 + length**2), atol=1e-3, rtol=1e-3)
    assert (torch.nn.functional.cosine_similarity(v, s, dim=-1) > 0.999).all()


def test_squash_lengths_rise_with_the_input_and_half_is_at_one():
    s = torch.eye(3)[0] * torch.tensor([[0.1], [0.5], [1.0], [3.0], [10.0]])
    norms = squash(s).norm(dim=-1)
    assert (norms.diff() > 0).all()
    assert norms[2] == pytest.approx(0.5, abs=1e-6)


def test_squash_of_zero_is_zero_with_a_finite_gradient():
    s = torch.zeros(2, 4, requires_grad=True)
    squash(s).sum().backward()
    assert torch.equal(squash(s), torch.zeros(2, 4))
    assert torch.isfinite(s.grad).all()


def routed_by_hand(predictions, iterations, accumulate):
    """Loops over samples, capsules and inputs, in numpy."""
    hat = predictions.numpy().astype(float)
    result = np.zeros((hat.shape[0], hat.shape[1], hat.shape[3]))
    for b in range(len(hat)):
        agreement = np.zeros(hat.shape[1:3])
        for step in range(iterations):
            for k in range(hat.shape[1]):
                s = np.zeros(hat.shape[3])
                for n in range(hat.shape[2]):
                    s += np.exp(agreement[k, n]) / np.exp(agreement[:, n]).sum() * hat[b, k, n]
                length = np.sqrt((s**2).sum())
                result[b, k] = s * length / (1 + length**2)
            if step < iterations - 1:
                found = (hat[b] * result[b][:, None]).sum(-1)
                agreement = agreement + found if accumulate else found
    return result


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_routing_equals_loops(iterations, accumulate):
    predictions = draw(2, 3, 5, 4)
    capsules, _ = route(predictions, iterations, accumulate)
    expected = torch.from_numpy(routed_by_hand(predictions, iterations, accumulate)).float()
    torch.testing.assert_close(capsules, expected, atol=1e-5, rtol=1e-4)


def test_the_two_updates_differ_from_the_third_iteration_on():
    predictions = draw(2, 3, 5, 4)
    assert torch.equal(route(predictions, 2, False)[0], route(predictions, 2, True)[0])
    assert not torch.allclose(route(predictions, 3, False)[0], route(predictions, 3, True)[0])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(1e-3, 50), iterations=st.integers(1, 4), accumulate=st.booleans())
def test_couplings_sum_to_one_and_capsules_stay_short(seed, scale, iterations, accumulate):
    capsules, coupling = route(draw(2, 3, 7, 4, seed=seed, scale=scale), iterations, accumulate)
    torch.testing.assert_close(coupling.sum(1), torch.ones(2, 7))
    assert (coupling >= 0).all()
    assert (capsules.norm(dim=-1) <= 1).all()


def test_routing_does_not_care_for_the_order_of_inputs():
    predictions = draw(2, 3, 6, 4)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(route(predictions[:, :, order])[0], route(predictions)[0], atol=1e-6, rtol=1e-5)


def test_agreeing_inputs_are_drawn_to_the_capsule_they_agree_on():
    predictions = 0.1 * draw(1, 2, 6, 4)
    predictions[0, 1] = torch.tensor([3.0, 0, 0, 0])  # all inputs say the same of capsule 1
    capsules, coupling = route(predictions, 3)
    assert coupling[0, 1].min() > 0.9
    assert capsules[0, 1].norm() > 0.9 > capsules[0, 0].norm()


def test_a_layer_predicts_with_one_matrix_for_all_inputs():
    layer = CapsuleLayer(6, 3, 4)
    capsules = draw(2, 5, 6)
    predictions = layer.predictions(capsules)
    assert predictions.shape == (2, 3, 5, 4)
    by_hand = torch.einsum("kdi,bni->bknd", layer.weight.view(3, 4, 6), capsules)
    torch.testing.assert_close(predictions, by_hand)
    assert sum(p.numel() for p in layer.parameters()) == 3 * 4 * 6
    with pytest.raises(ValueError, match="at least 1"):
        CapsuleLayer(6, 0, 4)


def test_a_layer_computes_in_float32_under_mixed_precision():
    layer, capsules = CapsuleLayer(6, 3, 4), draw(2, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(capsules)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, layer(capsules))


def test_margin_loss_equals_the_formula_by_hand():
    length = torch.tensor([[0.95, 0.05, 0.4], [0.2, 0.9, 0.8]])
    # sample 1, class 2: short by 0.5; class 0 long by 0.85, class 1 not; sample 2, class 0: short by 0.7, long 0.8, 0.7
    expected = torch.tensor([0.5**2 + 0.5 * 0.85**2, 0.7**2 + 0.5 * (0.8**2 + 0.7**2)])
    torch.testing.assert_close(margin_loss(length, torch.tensor([2, 0])), expected)


def test_margin_loss_is_zero_inside_the_margins_and_finite_outside():
    assert margin_loss(torch.tensor([[0.95, 0.05]]), torch.tensor([0])).item() == 0
    length = torch.tensor([[0.0, 1.0]], dtype=torch.half, requires_grad=True)
    loss = margin_loss(length, torch.tensor([0]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.81 + 0.5 * 0.81)
    assert torch.isfinite(length.grad).all()


def test_lengths_of_zero_capsules_have_a_logarithm_and_a_gradient():
    capsules = torch.zeros(1, 2, 3, requires_grad=True)
    lengths(capsules).log().sum().backward()
    assert torch.isfinite(lengths(capsules).log()).all()
    assert torch.isfinite(capsules.grad).all()
