"""Behaviour of CovXNet: sizes and counts of its branches, what each phase trains, the joining layer."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from chestflow.errors import ConfigError
from chestflow.imaging.cam import grad_cam
from chestflow.methods import registry
from chestflow.methods.registry import InputSpec
from chestflow.training.phases import apply_freezing
from tests.model.own_networks import (
    assert_answers_ignore_the_batch,
    assert_gradients_reach_all_and_are_finite,
    assert_saved_weights_answer_the_same,
    batch,
    images,
    train,
)

METHOD = registry.get("covxnet")
SPEC = InputSpec("cxr", (64, 64), ("non_covid", "covid19"))
SMALL = {"scales": [64, 32], "depth": 1, "width": 8, "hidden": 16}


def config(**values):
    return registry.configure(METHOD, {**SMALL, **values})


def network(seed=0, spec=SPEC, **values):
    torch.manual_seed(seed)
    return METHOD.build(config(**values), spec)


def test_sizes_and_counts_at_the_published_sizes():
    with torch.device("meta"):
        built = METHOD.build(METHOD.config(), InputSpec("cxr", (256, 256), SPEC.classes))
        output = built(torch.zeros(2, 1, 256, 256))
    counts = [sum(p.numel() for p in branch.parameters()) for branch in built.branches]
    assert counts == [7_593_058, 3_782_146, 967_938, 238_338]
    assert output.branches.shape == (2, 4, 2)
    assert output.features.shape == (2, 512, 8, 8)
    assert output.embedding.shape == (2, 256)


def test_defaults_are_the_papers():
    assert METHOD.config().scales == (256, 128, 64, 32)
    assert registry.deviations(METHOD, registry.completed(METHOD, {})) == []


@pytest.mark.parametrize("shape", [(64, 64), (96, 96), (70, 101)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_is_brought_to_the_scales(shape, channels):
    built = network(spec=dataclasses.replace(SPEC, shape=shape), channels=channels).eval()
    output = built(torch.rand(2, channels, *shape) * 255)
    assert output.logits.shape == (2, 2)
    assert output.features.shape == (2, 32, 8, 8)
    assert grad_cam(output, 1).shape == (2, 1, 8, 8)


def test_the_joined_answer_begins_as_the_mean_of_log_probabilities():
    built = network().eval()
    with torch.no_grad():
        output = built(images(3))
    torch.testing.assert_close(output.logits, output.branches.log_softmax(2).mean(1))


def test_first_loss_is_the_sum_over_branches():
    built, sample = network().eval(), batch(4)
    found = METHOD.phases(config())[0].loss(built, sample, torch.Generator())["loss"]
    logits = built(sample.image).branches
    torch.testing.assert_close(found, sum(F.cross_entropy(logits[:, s], sample.target) for s in range(2)))
    assert float(found.detach()) == pytest.approx(2 * math.log(2), abs=0.5)


def test_gradients_reach_every_parameter_over_both_phases():
    first, second = METHOD.phases(config())
    sample = batch()
    assert_gradients_reach_all_and_are_finite(
        network(), lambda n: [phase.loss(n, sample, torch.Generator())["loss"] for phase in (first, second)]
    )


def test_a_branch_trains_as_it_would_alone():
    first = METHOD.phases(config())[0]
    both, alone = network(), network(scales=[64])
    alone.branches[0].load_state_dict(both.branches[0].state_dict())
    sample = batch()
    train(both, first, 2, sample)
    train(alone, METHOD.phases(config(scales=[64]))[0], 2, sample)
    for name, value in alone.branches[0].state_dict().items():
        torch.testing.assert_close(both.branches[0].state_dict()[name], value, atol=1e-5, rtol=1e-3)


def test_joining_leaves_the_branches_bit_by_bit():
    first, second = METHOD.phases(config())
    built, sample = network(), batch()
    train(built, first, 1, sample)
    before = {k: v.clone() for k, v in built.state_dict().items()}
    apply_freezing(built, second)
    train(built, second, 3, sample)
    changed = {k for k, v in built.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"stack.weight", "stack.bias"}


def test_no_joining_phase_where_there_is_nothing_to_join():
    assert [phase.name for phase in METHOD.phases(config(stacking_epochs=0))] == ["branches"]
    assert [phase.name for phase in METHOD.phases(config(scales=[64]))] == ["branches"]
    assert [phase.name for phase in METHOD.phases(config())] == ["branches", "stack"]


@pytest.mark.parametrize("case", ["one class", "black", "half precision"])
def test_loss_stays_finite(case):
    sample = batch(4)
    if case == "one class":
        sample = dataclasses.replace(sample, target=torch.zeros_like(sample.target))
    if case == "black":
        sample = dataclasses.replace(sample, image=torch.zeros_like(sample.image))
    if case == "half precision":
        sample = dataclasses.replace(sample, image=sample.image.half())
    built = network().train()
    losses = [phase.loss(built, sample, torch.Generator())["loss"] for phase in METHOD.phases(config())]
    sum(losses).backward()
    assert all(torch.isfinite(loss) for loss in losses)
    assert all(torch.isfinite(p.grad).all() for p in built.parameters())


def test_answers_do_not_depend_on_the_batch():
    assert_answers_ignore_the_batch(network(), images(3))


def test_learns_eight_samples_by_heart():
    first = METHOD.phases(config(scales=[32]))[0]
    assert train(network(scales=[32]), first, 100, batch(), goal=0.05)[-1] < 0.05


def test_same_seed_same_weights():
    states = []
    for _ in range(2):
        built = network(seed=3)
        train(built, METHOD.phases(config())[0], 2, batch(4))
        states.append(built.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_saved_and_loaded_weights_answer_the_same(tmp_path):
    assert_saved_weights_answer_the_same(network(seed=1), network(seed=2), images(2), tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dataclasses.replace(SPEC, shape=(48, 64)), "largest scale is 64"),
        (dataclasses.replace(SPEC, modality="ct_volume", shape=(64, 64, 64)), "not ct_volume"),
        (dataclasses.replace(SPEC, classes=("covid19",)), "two classes"),
    ],
)
def test_what_does_not_fit_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        METHOD.build(config(), spec)


@pytest.mark.parametrize(
    "values",
    [
        {"scales": [64, 64]},
        {"scales": [48]},
        {"scales": []},
        {"depth": 0},
        {"lr": 0.0},
        {"width": 0},
        {"norm_momentum": 2.0},
    ],
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError):
        METHOD.phases(config(**values))
