"""Behaviour of DarkCovidNet: the published counts, its input statistics, its training."""

import dataclasses

import pytest
import torch

from chestflow.errors import ConfigError
from chestflow.imaging.cam import grad_cam
from chestflow.methods import registry
from chestflow.methods.registry import InputSpec
from tests.model.own_networks import (
    assert_answers_ignore_the_batch,
    assert_gradients_reach_all_and_are_finite,
    assert_saved_weights_answer_the_same,
    batch,
    images,
    train,
)

METHOD = registry.get("darkcovidnet")
SPEC = InputSpec("cxr", (64, 64), ("non_covid", "covid19"))


def config(**values):
    return registry.configure(METHOD, values)


def network(seed=0, spec=SPEC, **values):
    torch.manual_seed(seed)
    return METHOD.build(config(**values), spec)


@pytest.mark.parametrize(
    ("classes", "parameters"), [(("rest", "covid19"), 1_164_434), (("normal", "pneumonia", "covid19"), 1_167_586)]
)
def test_the_published_parameter_counts_at_the_published_size(classes, parameters):
    with torch.device("meta"):
        built = METHOD.build(METHOD.config(), InputSpec("cxr", (256, 256), classes))
        output = built(torch.zeros(2, 1, 256, 256))
    assert sum(p.numel() for p in built.parameters()) == parameters
    assert output.features.shape == (2, 256, 13, 13)
    assert output.embedding.shape == (2, 169 * len(classes))
    assert sum(isinstance(m, torch.nn.Conv2d) for m in built.modules()) == 17


def test_defaults_are_the_papers():
    assert (config().lr, config().epochs, config().batch_size) == (3e-3, 100, 32)
    assert registry.deviations(METHOD, registry.completed(METHOD, {})) == []


@pytest.mark.parametrize("shape", [(64, 64), (96, 96), (33, 70)])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_sizes(shape, channels):
    built = network(spec=dataclasses.replace(SPEC, shape=shape), channels=channels).eval()
    output = built(torch.rand(2, channels, *shape) * 255)
    assert output.logits.shape == (2, 2)
    assert grad_cam(output, 1).shape[2:] == output.features.shape[2:]


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="built for"):
        network()(torch.zeros(1, 1, 64, 96))


def test_the_first_batch_gives_the_inputs_statistics():
    built, sample = network(), batch()
    METHOD.phases(config())[0].prepare(built, iter([sample, batch(seed=1)]))
    seen = built.input(sample.image)
    assert float(seen.mean()) == pytest.approx(0, abs=1e-4)
    assert float(seen.std()) == pytest.approx(1, abs=1e-3)
    assert {"input.mean", "input.std"} <= set(built.state_dict())
    black = dataclasses.replace(sample, image=torch.zeros_like(sample.image))
    METHOD.phases(config())[0].prepare(built, iter([black]))
    assert torch.isfinite(built(black.image).logits).all()
    assert METHOD.phases(config(normalise="imagenet"))[0].prepare is None


def test_gradients_reach_every_parameter():
    phase = METHOD.phases(config())[0]
    assert_gradients_reach_all_and_are_finite(network(), lambda n: [phase.loss(n, batch(), torch.Generator())["loss"]])


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
    loss = METHOD.phases(config())[0].loss(built, sample, torch.Generator())["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in built.parameters() if p.grad is not None)


def test_answers_do_not_depend_on_the_batch():
    assert_answers_ignore_the_batch(network(), images(3))


def test_learns_eight_samples_by_heart():
    phase = METHOD.phases(config(augment=False))[0]
    assert train(network(), phase, 100, batch(), goal=0.05)[-1] < 0.05


def test_same_seed_same_weights():
    states = []
    for _ in range(2):
        built = network(seed=3)
        train(built, METHOD.phases(config())[0], 3, batch(4))
        states.append(built.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_saved_and_loaded_weights_answer_the_same(tmp_path):
    assert_saved_weights_answer_the_same(network(seed=1), network(seed=2), images(2), tmp_path / "weights.safetensors")


def test_the_rate_rises_to_lr_and_falls_over_the_epochs():
    phase = METHOD.phases(config(epochs=10))[0]
    stepped = phase.optimiser([torch.nn.Parameter(torch.zeros(2))])
    schedule, rates = phase.schedule(stepped), []
    for _ in range(10):
        rates.append(stepped.param_groups[0]["lr"])
        stepped.step()
        schedule.step()
    assert 0.95 * 3e-3 < max(rates) <= 3e-3
    assert rates[0] < max(rates) / 20
    assert rates[-1] < max(rates) / 10
    assert rates.index(max(rates)) in (2, 3)
    assert METHOD.phases(config(schedule="none"))[0].schedule is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dataclasses.replace(SPEC, shape=(31, 64)), "at least 32"),
        (dataclasses.replace(SPEC, modality="ct_volume", shape=(64, 64, 64)), "not ct_volume"),
        (dataclasses.replace(SPEC, classes=("covid19",)), "two classes"),
    ],
)
def test_what_does_not_fit_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        METHOD.build(config(), spec)


@pytest.mark.parametrize(
    "values", [{"lr": 0.0}, {"betas": [0.9, 1.0]}, {"batch_size": 0}, {"flip": 2.0}, {"normalise": "clahe"}]
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError):
        METHOD.phases(config(**values))
