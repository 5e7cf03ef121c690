import math

import numpy as np
import pytest
import torch

from chestflow.nn.netvlad import NetVLAD, fit_centres


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(clusters=8, dim=6, normalise=False, alpha=1.0, seed=1):
    net = NetVLAD(clusters, dim, normalise_input=normalise)
    net.tie(draw(clusters, dim, seed=seed), alpha)
    return net


def by_loops(net, x, weights=None):
    """V of eq. (4), one term at a time, in float64."""
    w, b, c = (p.detach().double().numpy() for p in (net.weight, net.bias, net.centres))
    x = x.double().numpy()
    out = np.zeros((len(x), *c.shape))
    for i, sample in enumerate(x):
        for n, descriptor in enumerate(sample):
            scores = np.exp(w @ descriptor + b - np.max(w @ descriptor + b))
            share = scores / scores.sum() * (1.0 if weights is None else float(weights[n]))
            for k in range(len(c)):
                out[i, k] += share[k] * (descriptor - c[k])
    return torch.from_numpy(out).float()


def test_residuals_match_the_formula():
    net, x = layer(), draw(3, 21, 6)
    torch.testing.assert_close(net.residuals(x), by_loops(net, x), atol=1e-4, rtol=1e-4)
    weights = torch.rand(21, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(net.residuals(x, weights), by_loops(net, x, weights), atol=1e-4, rtol=1e-4)


def test_assignments_sum_to_one():
    net = layer()
    torch.testing.assert_close(net.assign(draw(2, 21, 6)).sum(2), torch.ones(2, 21))


def test_tied_start_is_a_softmax_of_squared_distances():
    net, x = layer(alpha=0.7), draw(2, 21, 6)
    distances = torch.cdist(x, net.centres[None].expand(2, -1, -1)).square()
    torch.testing.assert_close(net.assign(x), torch.softmax(-0.7 * distances, 2), atol=1e-5, rtol=1e-4)


def test_unit_length_and_each_cluster_an_equal_share():
    out = layer()(draw(4, 21, 6))
    torch.testing.assert_close(out.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(out.view(4, 8, 6).norm(dim=2), torch.full((4, 8), 1 / math.sqrt(8)))
    assert round(1 / math.sqrt(8), 4) == 0.3536


def test_largest_entry_of_a_fresh_layer_is_well_below_one():
    out = NetVLAD(16, 512)(draw(4, 21, 512).abs())
    torch.testing.assert_close(out.norm(dim=1), torch.ones(4))
    assert out.abs().max() < 0.2


def test_order_and_duplication_of_descriptors_do_not_matter():
    net, x = layer(), draw(2, 21, 6)
    expected = net(x)
    shuffled = x[:, torch.randperm(21, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(net(shuffled), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net(torch.cat([x, x], 1)), expected, atol=1e-5, rtol=1e-4)


def test_moving_descriptors_and_centres_together_keeps_the_residuals():
    net, x, offset = layer(), draw(2, 21, 6), draw(6, seed=9)
    expected = net.residuals(x)
    net.tie(net.centres.detach() + offset, 1.0)
    torch.testing.assert_close(net.residuals(x + offset), expected, atol=1e-4, rtol=1e-4)


def test_sharp_assignment_is_hard_vlad():
    net, x = layer(alpha=1e4), draw(1, 50, 6)
    centres, points = net.centres.detach().numpy(), x[0].numpy()
    expected = np.zeros_like(centres)
    for point in points:
        nearest = int(np.argmin(((point - centres) ** 2).sum(1)))
        expected[nearest] += point - centres[nearest]
    np.testing.assert_allclose(net.residuals(x)[0].detach().numpy(), expected, atol=1e-3)


def test_one_cluster_sums_the_residuals():
    net, x = layer(clusters=1), draw(2, 21, 6)
    torch.testing.assert_close(net.residuals(x)[:, 0], (x - net.centres).sum(1), atol=1e-4, rtol=1e-4)


def test_a_cluster_without_residual_leaves_the_rest_of_unit_length():
    net = layer(clusters=3, dim=4)
    centres = torch.eye(4)[:3].contiguous()
    net.tie(centres, 1e4)
    x = (centres[:2] + 0.1).expand(1, 2, 4).clone().requires_grad_()  # the third centre gets nothing
    out = net(x)
    rows = out.view(3, 4).norm(dim=1)
    torch.testing.assert_close(rows, torch.tensor([1 / math.sqrt(2), 1 / math.sqrt(2), 0.0]), atol=1e-5, rtol=1e-4)
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_no_residual_at_all_gives_zero_with_finite_gradients():
    net = layer(clusters=1, dim=4)
    x = net.centres.detach().expand(1, 5, 4).clone().requires_grad_()
    out = net(x)
    out.sum().backward()
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.isfinite(x.grad).all()
    zero = NetVLAD(4, 6)(torch.zeros(1, 5, 6))
    assert torch.isfinite(zero).all()


def test_weights_cancel_in_unit_descriptors_but_not_in_the_assignments():
    net, x = layer(normalise=True), draw(2, 21, 6)
    weights = torch.linspace(0.1, 2.0, 21)
    torch.testing.assert_close(net(x * weights[None, :, None]), net(x), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(net(x, weights), net(x), atol=1e-2)
    torch.testing.assert_close(net(x, torch.full((21,), 3.0)), net(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("alpha", [1e3, 1e6])
def test_large_scores_stay_finite(alpha):
    net = layer(alpha=alpha)
    x = (30 * draw(2, 21, 6)).requires_grad_()
    net(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_half_precision_input_is_computed_in_float32():
    net, x = layer(dim=64), 300 * draw(1, 21, 64)
    out = net(x.half())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=1), torch.ones(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(net(x), net(x.float()))
        assert net(x).dtype == torch.float32


def test_kmeans_finds_the_centres_and_alpha_gives_the_ratio():
    truth = 10 * torch.eye(4)
    points = (truth[:, None] + 0.1 * draw(4, 50, 4)).flatten(0, 1)
    centres, alpha = fit_centres(points, 4, seed=0)
    assert torch.cdist(truth, centres).amin(1).max() < 0.1
    net = NetVLAD(4, 4, normalise_input=False)
    net.tie(centres, alpha)
    top = net.assign(points[None])[0].topk(2, dim=1).values
    assert float((top[:, 0] / top[:, 1]).log().mean().detach()) == pytest.approx(math.log(100), rel=1e-2)


def test_kmeans_is_repeatable():
    points = draw(200, 5)
    first, second = fit_centres(points, 6, seed=3), fit_centres(points, 6, seed=3)
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]


def test_kmeans_edge_cases():
    with pytest.raises(ValueError, match="3 descriptors cannot make 4 clusters"):
        fit_centres(draw(3, 5), 4)
    with pytest.raises(ValueError, match="not finite"):
        fit_centres(torch.full((9, 5), float("nan")), 4)
    centres, alpha = fit_centres(draw(9, 5), 1)
    torch.testing.assert_close(centres[0], draw(9, 5).mean(0), atol=1e-5, rtol=1e-4)
    assert alpha == 1.0


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_kmeans_of_identical_descriptors_keeps_alpha_finite():
    centres, alpha = fit_centres(torch.ones(20, 5), 4)
    assert torch.isfinite(centres).all()
    assert alpha <= 1e4


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="clusters"):
        NetVLAD(0, 4)
    with pytest.raises(ValueError, match="expected"):
        NetVLAD(2, 4).tie(torch.zeros(3, 4), 1.0)
