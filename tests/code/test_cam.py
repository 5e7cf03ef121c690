import pytest
import torch
from torch import nn

from chestflow.imaging.cam import grad_cam, min_max, upsample
from chestflow.nn.output import Output


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear_output(features, weight):
    features = features.requires_grad_()
    return Output(features.flatten(2).mean(2) @ weight.t(), features=features)


@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (2, 6, 3, 5, 4)])
def test_equals_the_class_activation_map_of_a_linear_head(shape):
    weight = draw(3, 6, seed=1)
    output = linear_output(draw(*shape), weight)
    cells = shape[2:].numel() if hasattr(shape[2:], "numel") else int(torch.tensor(shape[2:]).prod())
    for c in range(3):
        expected = torch.relu(torch.einsum("f,bf...->b...", weight[c], output.features))[:, None] / cells
        torch.testing.assert_close(grad_cam(output, c), expected.detach())


def test_single_logit_speaks_for_both_classes():
    weight = draw(1, 6, seed=1)
    output = linear_output(draw(2, 6, 5, 4), weight)
    both = linear_output(draw(2, 6, 5, 4), torch.cat([-weight, weight]))
    for c in (0, 1):
        torch.testing.assert_close(grad_cam(output, c), grad_cam(both, c))


def test_one_samples_map_does_not_depend_on_the_others():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    head = nn.Linear(4, 2)

    def maps(x):
        f = network(x)
        return grad_cam(Output(head(f.mean((2, 3))), features=f), 1)

    x = draw(3, 1, 9, 9)
    torch.testing.assert_close(maps(x)[:1], maps(x[:1]))


def test_what_cannot_be_done_is_said():
    good = linear_output(draw(1, 6, 5, 4), draw(3, 6))
    with pytest.raises(ValueError, match="no features"):
        grad_cam(Output(good.logits), 0)
    with pytest.raises(ValueError, match="enable_grad"):
        grad_cam(Output(good.logits.detach(), features=good.features.detach()), 0)
    with pytest.raises(ValueError, match="class 3"):
        grad_cam(good, 3)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 1, 3, 4, 4)])
def test_min_max_covers_zero_to_one_sample_by_sample(shape):
    heat = draw(*shape) * torch.tensor([1.0, 1e-3]).view(2, *[1] * (len(shape) - 1))
    out = min_max(heat)
    assert torch.equal(out.flatten(1).amin(1), torch.zeros(2))
    torch.testing.assert_close(out.flatten(1).amax(1), torch.ones(2))
    torch.testing.assert_close(min_max(7 * heat + 3), out, atol=1e-3, rtol=0)


def test_constant_map_becomes_zeros():
    assert torch.equal(min_max(torch.full((1, 1, 3, 3), 5.0)), torch.zeros(1, 1, 3, 3))


def test_upsampled_peak_stays_in_its_cell():
    heat = torch.zeros(1, 1, 4, 5, 6)
    heat[0, 0, 2, 1, 4] = 1
    out = upsample(heat, (16, 20, 24))
    z, y, x = (int(i) for i in torch.unravel_index(out.argmax(), (16, 20, 24)))
    assert (z // 4, y // 4, x // 4) == (2, 1, 4)
    assert upsample(torch.ones(1, 1, 2, 2), (5, 7)).shape == (1, 1, 5, 7)
