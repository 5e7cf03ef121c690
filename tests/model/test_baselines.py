"""Behaviour of the plain networks: heads, counts against torchvision's, freezing, weights."""

import dataclasses

import pytest
import torch
from torchvision.models import get_model

from chestflow.errors import ConfigError, TrainingError
from chestflow.methods import registry
from chestflow.nn.backbones import CHANNELS, MIN_SIDE, PYRAMID_CHANNELS
from tests.model.comparators import (
    QUICK,
    THREE,
    batch,
    generator,
    images,
    kept_while_training,
    network,
    one_by_one_as_together,
    parameters,
    spec,
    train,
    without_gradient,
)

METHOD = registry.get("baselines")
LIGHT = ("resnet18", "squeezenet1_1", "efficientnet_b0")


def meta(classes=THREE, side=224, **values):
    with torch.device("meta"):
        return METHOD.build(registry.configure(METHOD, values), spec(side, classes))


def phase(**values):
    return METHOD.phases(registry.configure(METHOD, values))[0]


@pytest.mark.parametrize("name", CHANNELS)
def test_as_many_parameters_as_torchvisions_own_with_as_many_classes(name):
    options = {"aux_logits": False, "init_weights": False} if name == "inception_v3" else {}
    with torch.device("meta"):
        reference = get_model(name, weights=None, num_classes=3, **options)
    assert parameters(meta(network=name)) == parameters(reference)


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given", [1, 3])
def test_shapes(name, channels, given):
    side = MIN_SIDE[name]
    with torch.device("meta"):
        built = meta(side=side, network=name, channels=channels).eval()
        output = built(torch.empty(2, given, side, side))
    assert output.logits.shape == (2, 3)
    assert output.features.shape[:2] == (2, CHANNELS[name])
    assert output.embedding.shape == (2, 4096 if name == "vgg16" else CHANNELS[name])
    assert output.attention is None


@pytest.mark.parametrize("name", LIGHT)
def test_answers_are_torchvisions(name):
    built = network(METHOD, classes=THREE, network=name, normalise="unit").eval()
    reference = get_model(name, weights=None, num_classes=3).eval()
    state = reference.state_dict() | built.backbone.trunk.state_dict()
    last = built.head[-1].state_dict()
    head = {"resnet18": "fc", "squeezenet1_1": "classifier.1", "efficientnet_b0": "classifier.1"}[name]
    reference.load_state_dict(state | {f"{head}.{key}": value for key, value in last.items()})
    x = images(2)
    if name == "squeezenet1_1":
        reference.classifier[2] = torch.nn.Identity()  # torchvision's head has a ReLU, which hides negative scores
    with torch.no_grad():
        own, theirs = built(x).logits, reference(x.expand(-1, 3, -1, -1) / 255)
    torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", LIGHT)
def test_gradient_reaches_everything(name):
    assert not without_gradient(METHOD, network(METHOD, network=name), network=name)


def test_gradient_reaches_everything_of_inception():
    assert not without_gradient(METHOD, network(METHOD, 75, network="inception_v3"), 75, network="inception_v3")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CHANNELS) - set(LIGHT) - {"inception_v3"}))
def test_gradient_reaches_everything_of_the_large_ones(name):
    assert not without_gradient(METHOD, network(METHOD, network=name), network=name)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_learns_eight_samples_by_heart(name):
    values = {**QUICK, "network": name, "dropout": 0.0}
    assert train(METHOD, network(METHOD, **values), 100, batch(), **values)[-1] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CHANNELS) - {"resnet18", "squeezenet1_1"}))
def test_the_others_learn_eight_samples_by_heart(name):
    """VGG16 has no batch norm and takes a smaller step."""
    side = MIN_SIDE[name]
    values = {**QUICK, "network": name, "dropout": 0.0, "lr": 1e-4 if name == "vgg16" else 1e-3}
    assert train(METHOD, network(METHOD, side, **values), 100, batch(side=side), **values)[-1] < 0.05


@pytest.mark.parametrize("name", LIGHT)
def test_answers_do_not_depend_on_the_batch(name):
    assert one_by_one_as_together(network(METHOD, network=name))


def test_narins_head_has_two_more_layers():
    plain, narin = meta(), meta(hidden=[1024, 512])
    assert parameters(narin) - parameters(plain) == (2048 * 1024 + 1024) + (1024 * 512 + 512) + (512 - 2048) * 3
    built = network(METHOD, network="resnet18", hidden=[32, 16])
    assert built.eval()(images(2)).embedding.shape == (2, 16)
    assert not without_gradient(METHOD, built, network="resnet18", hidden=[32, 16])


def test_head_without_bias():
    assert parameters(meta()) - parameters(meta(head_bias=False)) == 3
    assert parameters(meta(network="squeezenet1_1")) - parameters(meta(network="squeezenet1_1", head_bias=False)) == 3


@pytest.mark.parametrize(("name", "hidden"), [("resnet18", []), ("resnet18", [16]), ("squeezenet1_1", [])])
def test_head_alone_trains_and_the_rest_stays_bit_for_bit(name, hidden):
    values = {**QUICK, "network": name, "hidden": hidden, "freeze_backbone": True}
    built = network(METHOD, **values)
    trained = {k for k in built.state_dict() if k.startswith(("head.", "hidden."))}
    assert trained
    assert kept_while_training(METHOD, built, 3, **values) == set(built.state_dict()) - trained


def test_of_vgg16_the_last_layer_alone_trains():
    built = meta(side=64, network="vgg16", freeze_backbone=True)
    from chestflow.training.phases import trainable

    named = trainable(built, phase(network="vgg16", freeze_backbone=True))
    assert {name for name, _ in named} == {"head.1.weight", "head.1.bias"}


def test_preparation_loads_a_stand_in_for_pretrained_weights(tmp_path):
    torch.manual_seed(9)
    state = get_model("squeezenet1_1", weights=None).state_dict()  # random numbers in torchvision's layout
    torch.save(state, tmp_path / "stand_in.pth")
    built = network(METHOD, network="squeezenet1_1")
    phase(network="squeezenet1_1", weights=str(tmp_path / "stand_in.pth")).prepare(built, iter([]))
    assert torch.equal(built.backbone.trunk.features[0].weight, state["features.0.weight"])
    assert phase().prepare is None
    with pytest.raises(TrainingError, match="do not exist"):
        phase(network="squeezenet1_1", weights="nowhere.pth").prepare(built, iter([]))


def test_vgg16_takes_its_fully_connected_layers_from_the_file(tmp_path, monkeypatch):
    """At a width of 8 instead of 4096: half a gigabyte of random numbers would prove no more."""
    monkeypatch.setattr("chestflow.methods.baselines.VGG_WIDTH", 8)
    built = network(METHOD, network="vgg16")
    state = {k: torch.rand_like(v) for k, v in built.backbone.trunk.state_dict().items()}
    head = {f"classifier.{k}": torch.rand_like(v) for k, v in built.neck.state_dict().items()}
    torch.save({**state, **head, "classifier.6.weight": torch.rand(1000, 8)}, tmp_path / "whole.pth")
    torch.save(state, tmp_path / "cut.pth")
    phase(network="vgg16", weights=str(tmp_path / "whole.pth")).prepare(built, iter([]))
    assert torch.equal(built.neck[3].bias, head["classifier.3.bias"])
    assert torch.equal(built.backbone.trunk.features[28].weight, state["features.28.weight"])
    assert built.eval()(images(1)).logits.shape == (1, 2)
    with pytest.raises(TrainingError, match="lack VGG16's fully connected layers"):
        phase(network="vgg16", weights=str(tmp_path / "cut.pth")).prepare(built, iter([]))


@pytest.mark.parametrize("name", CHANNELS)
def test_too_small_images_are_refused_at_start_and_at_use(name):
    side = MIN_SIDE[name] - 1
    with pytest.raises(ConfigError, match=f"{name} needs images of at least {side + 1}"):
        meta(side=side, network=name)
    with torch.device("meta"), pytest.raises(ValueError, match=f"at least {side + 1} pixels"):
        meta(network=name)(torch.empty(1, 1, side, side + 9))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="not ct_volume"):
        METHOD.build(METHOD.config(), dataclasses.replace(spec(), modality="ct_volume"))
    with pytest.raises(ConfigError, match="two classes"):
        METHOD.build(METHOD.config(), spec(classes=("covid19",)))


@pytest.mark.parametrize(
    "values",
    [
        {"network": "alexnet"}, {"hidden": [0]}, {"network": "squeezenet1_1", "hidden": [8]}, {"dropout": 1.0},
        {"lr": 0.0}, {"schedule": "warm"}, {"schedule_step": 0}, {"momentum": 1.0}, {"flip": 2.0}, {"epochs": 0},
        {"channels": 2},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError):
        METHOD.phases(registry.configure(METHOD, values))


def test_stepped_schedule_takes_a_tenth_every_seven_epochs():
    minaee = phase(schedule="step", lr=1e-4)
    parameter = torch.nn.Parameter(torch.zeros(2))
    stepped = minaee.optimiser([parameter])
    schedule = minaee.schedule(stepped)
    rates = []
    for _ in range(15):
        rates.append(stepped.param_groups[0]["lr"])
        stepped.step()
        schedule.step()
    assert rates == pytest.approx([1e-4] * 7 + [1e-5] * 7 + [1e-6])


@pytest.mark.parametrize("kind", ["affine", "subset"])
def test_augmentation_changes_the_pictures_the_same_way_for_the_same_draws(kind):
    augment = phase(augmentation=kind).augment
    sample = batch(4)
    first, second = (augment(sample, generator()).image for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, sample.image)
    assert phase(augmentation=kind, augment=False).augment is None


def test_every_pyramid_ends_in_the_width_the_head_reads():
    assert {name: widths[-1] for name, widths in PYRAMID_CHANNELS.items()} == CHANNELS
