"""What the tests of the networks of their own share: batches with a bright square, and a short training."""

import math

import torch

from chestflow.training.phases import Batch, apply_freezing


def images(count=8, side=64, seed=0, channels=1):
    """Noise; odd ones carry a bright square."""
    x = torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 80
    x[1::2, :, side // 2 : 3 * side // 4, side // 4 : side // 2] += 150
    return x


def batch(count=8, seed=0, classes=2, **options):
    return Batch(
        image=images(count, seed=seed, **options),
        target=torch.arange(count) % classes,
        lung=None,
        infection=None,
        has_infection=torch.zeros(count, dtype=torch.bool),
        ratio=torch.full((count,), math.nan),
        rows=torch.arange(count),
    )


def train(network, phase, steps, sample, goal=0.0, seed=0):
    """The losses of up to ``steps`` steps of a phase on one batch, fewer once the loss is below ``goal``."""
    torch.manual_seed(seed)
    if phase.prepare is not None:
        phase.prepare(network, iter([sample]))
    optimiser = phase.optimiser(apply_freezing(network, phase))
    draw, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        shown = sample if phase.augment is None else phase.augment(sample, draw)
        loss = phase.loss(network, shown, draw)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        if losses[-1] < goal:
            break
    return losses


def assert_answers_ignore_the_batch(network, x):
    """Answers for a batch equal those for its images one by one."""
    network.eval()
    with torch.no_grad():
        together = network(x).logits
        apart = torch.cat([network(one[None]).logits for one in x])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def assert_gradients_reach_all_and_are_finite(network, losses):
    """Each loss's gradients together reach every parameter."""
    network.train()
    sum(losses(network)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def assert_saved_weights_answer_the_same(network, other, x, path):
    from safetensors.torch import load_file, save_file

    save_file({k: v.contiguous() for k, v in network.eval().state_dict().items()}, path)
    other.eval().load_state_dict(load_file(path))
    with torch.no_grad():
        assert torch.equal(network(x).logits, other(x).logits)
