"""Behaviour of COVID-CAPS: the published count, lengths as answers, class weights, its training."""

import dataclasses
import math

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

METHOD = registry.get("covid_caps")
SPEC = InputSpec("cxr", (64, 64), ("non_covid", "covid19"))
SMALL = {"pool_first": 2, "channels": 1}


def config(**values):
    return registry.configure(METHOD, {**SMALL, **values})


def network(seed=0, spec=SPEC, **values):
    torch.manual_seed(seed)
    return METHOD.build(config(**values), spec)


def test_the_published_count_of_values():
    with torch.device("meta"):
        built = METHOD.build(METHOD.config(), InputSpec("cxr", (224, 224), SPEC.classes))
        output = built(torch.zeros(2, 1, 224, 224))
    trained = sum(p.numel() for p in built.parameters())
    statistics = sum(b.numel() for n, b in built.named_buffers() if n.endswith(("running_mean", "running_var")))
    assert (trained, statistics, trained + statistics) == (295_360, 128, 295_488)
    assert output.logits.shape == (2, 2)
    assert output.features.shape == (2, 128, 106, 106)
    assert output.embedding.shape == (2, 32)


def test_defaults_are_the_papers():
    defaults = METHOD.config()
    assert (defaults.lr, defaults.epochs, defaults.batch_size, defaults.monitor) == (1e-3, 100, 16, "loss")
    assert registry.deviations(METHOD, registry.completed(METHOD, {})) == []
    assert [row["name"] for row in registry.deviations(METHOD, registry.completed(METHOD, {"pool_first": 2}))] == [
        "pool_first"
    ]


@pytest.mark.parametrize("shape", [(64, 64), (96, 96), (40, 66)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size(shape, channels):
    built = network(spec=dataclasses.replace(SPEC, shape=shape), channels=channels).eval()
    output = built(torch.rand(2, channels, *shape) * 255)
    assert output.logits.shape == (2, 2)
    assert grad_cam(output, 1).shape[2:] == output.features.shape[2:]


def test_logits_are_log_lengths_whose_softmax_is_their_share():
    built = network(gain=6.0).train()
    with torch.no_grad():
        output = built(images(4))
    length = output.embedding.view(4, 2, 16).norm(dim=2)
    assert ((length > 0) & (length < 1)).all()
    torch.testing.assert_close(output.logits.exp(), length, atol=1e-4, rtol=1e-3)
    share = length / length.sum(1, keepdim=True)
    torch.testing.assert_close(output.logits.softmax(1), share, atol=1e-3, rtol=1e-3)


def test_loss_is_the_weighted_margin_loss_of_the_lengths():
    from chestflow.nn.capsules import margin_loss

    built, sample = network().eval(), batch(4)
    built.class_weight.copy_(torch.tensor([0.25, 0.75]))
    found = METHOD.phases(config())[0].loss(built, sample, torch.Generator())["loss"]
    each = margin_loss(built(sample.image).logits.exp(), sample.target)
    torch.testing.assert_close(found, (each * torch.tensor([0.25, 0.75])[sample.target]).mean())


def test_class_weights_are_the_shares_of_the_others():
    built, sample = network(), batch(4)
    rare = dataclasses.replace(sample, target=torch.tensor([0, 0, 0, 1]))
    METHOD.phases(config())[0].prepare(built, iter([rare, dataclasses.replace(sample, target=torch.zeros(4).long())]))
    torch.testing.assert_close(built.class_weight, torch.tensor([1 / 8, 7 / 8]))
    assert "class_weight" in built.state_dict()
    assert METHOD.phases(config(class_weights=False))[0].prepare is None


def test_gradients_reach_every_parameter():
    phase = METHOD.phases(config())[0]
    assert_gradients_reach_all_and_are_finite(network(), lambda n: [phase.loss(n, batch(), torch.Generator())["loss"]])


@pytest.mark.parametrize("case", ["one image", "one class", "black", "half precision"])
def test_loss_stays_finite(case):
    sample = batch(1 if case == "one image" else 4)
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
    assert all(torch.isfinite(p.grad).all() for p in built.parameters())


def test_answers_do_not_depend_on_the_batch():
    assert_answers_ignore_the_batch(network(), images(3))


def test_learns_eight_samples_by_heart():
    built = network(gain=3.0, norm_momentum=0.3)
    # classes weigh one half each, so a wrong answer among eight costs 0.02 or more
    assert train(built, METHOD.phases(config())[0], 100, batch(), goal=0.02)[-1] < 0.02
    built.eval()
    assert torch.equal(built(batch().image).logits.argmax(1), batch().target)


def test_same_seed_same_weights():
    states = []
    for _ in range(2):
        built = network(seed=3)
        train(built, METHOD.phases(config())[0], 2, batch(4))
        states.append(built.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_saved_and_loaded_weights_answer_the_same(tmp_path):
    assert_saved_weights_answer_the_same(network(seed=1), network(seed=2), images(2), tmp_path / "weights.safetensors")


def test_untrained_answers_are_undecided():
    with torch.no_grad():
        logits = network().eval()(images(4)).logits
    assert -(logits.log_softmax(1)[:, 1]).mean() == pytest.approx(math.log(2), abs=0.4)


@pytest.mark.parametrize(
    ("values", "spec", "message"),
    [
        ({}, dataclasses.replace(SPEC, shape=(31, 64)), "at least 32"),
        ({"pool_first": 1}, dataclasses.replace(SPEC, shape=(15, 64)), "at least 16"),
        ({}, dataclasses.replace(SPEC, modality="ct_volume", shape=(64, 64, 64)), "not ct_volume"),
        ({}, dataclasses.replace(SPEC, classes=("covid19",)), "two classes"),
    ],
)
def test_what_does_not_fit_is_refused(values, spec, message):
    with pytest.raises(ConfigError, match=message):
        METHOD.build(config(**values), spec)


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 0.0},
        {"gain": 0.0},
        {"norm_momentum": 0.0},
        {"routings": 0},
        {"margin_absent": 0.95},
        {"accumulate": 0},
        {"normalise": "batch"},
    ],
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError):
        METHOD.phases(config(**values))


def test_small_image_at_use_is_refused():
    with pytest.raises(ValueError, match="16 pixels"):
        network().eval()(torch.zeros(1, 1, 24, 64))
