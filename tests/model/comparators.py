"""What the tests of the comparators share: pictures with a signal, training steps, and checks that hold for each."""

import math

import torch

from chestflow.methods import registry
from chestflow.methods.registry import InputSpec
from chestflow.training.phases import Batch, apply_freezing

THREE = ("normal", "pneumonia", "covid19")
TWO = ("rest", "covid19")
QUICK = {"optimiser": "adam", "lr": 1e-3, "augment": False}


def spec(side=64, classes=TWO, modality="cxr"):
    return InputSpec(modality, (side, side), classes)


def network(method, side=64, classes=TWO, seed=0, **values):
    torch.manual_seed(seed)
    return method.build(registry.configure(method, values), spec(side, classes))


def images(count=8, side=64, seed=0, channels=1):
    """Noise; odd ones carry a bright square."""
    x = torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 80
    x[1::2, :, side // 2 : 3 * side // 4, side // 4 : side // 2] += 150
    return x


def batch(count=8, side=64, seed=0):
    return Batch(
        image=images(count, side, seed),
        target=torch.arange(count) % 2,
        lung=None,
        infection=None,
        has_infection=torch.zeros(count, dtype=torch.bool),
        ratio=torch.full((count,), math.nan),
        rows=torch.arange(count),
    )


def generator():
    return torch.Generator().manual_seed(0)


def train(method, built, steps, sample, **values):
    """The losses of at most so many steps of the only phase, ending below 0.05."""
    phase = method.phases(registry.configure(method, values))[0]
    optimiser = phase.optimiser(apply_freezing(built, phase))
    draw, losses = generator(), []
    for _ in range(steps):
        loss = phase.loss(built, sample, draw)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        if losses[-1] < 0.05:
            break
    return losses


def without_gradient(method, built, side=64, **values):
    """Names of the parameters that the phase trains and a step of its loss does not reach, dropout off."""
    phase = method.phases(registry.configure(method, values))[0]
    trained = {id(p) for p in apply_freezing(built, phase)}
    for module in built.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    phase.loss(built, batch(2, side), generator())["loss"].backward()
    named = built.named_parameters()
    return [n for n, p in named if id(p) in trained and (p.grad is None or not p.grad.abs().sum() > 0)]


def kept_while_training(method, built, steps, **values):
    """Names in the state that these steps leave as they were, bit for bit."""
    before = {k: v.clone() for k, v in built.state_dict().items()}
    train(method, built, steps, batch(4), **values)
    return {k for k, v in built.state_dict().items() if torch.equal(v, before[k])}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def answers(built, side=64, channels=1, count=2):
    with torch.no_grad():
        return built.eval()(images(count, side, channels=channels))


def one_by_one_as_together(built, side=64):
    """Whether the answers to four images are those to each alone."""
    together = answers(built, side, count=4).logits
    with torch.no_grad():
        apart = torch.cat([built(one[None]).logits for one in images(4, side)])
    return torch.allclose(together, apart, atol=1e-5, rtol=1e-4)
