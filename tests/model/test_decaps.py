"""DECAPS: inverted routing and the other capsules against their formulas, crop and drop, the whole method."""

import dataclasses
import math

import pytest
import torch

from chestflow.errors import ConfigError
from chestflow.methods import registry
from chestflow.methods.decaps import spread_loss
from chestflow.methods.registry import InputSpec
from chestflow.nn.capsules import squash
from chestflow.nn.detail_capsules import ClassCapsules, PrimaryCapsules, WindowCapsules, crop_to, route_inverted
from chestflow.training.phases import apply_freezing
from tests.model.own_networks import (
    assert_answers_ignore_the_batch,
    assert_saved_weights_answer_the_same,
    batch,
    images,
    train,
)

METHOD = registry.get("decaps")
SPEC = InputSpec("ct_slice", (96, 96), ("non_covid", "covid19"))
SMALL = {"backbone": "resnet18", "channels": 1, "width": 16, "capsules": [4, 4, 4], "batch_size": 8, "augment": False}


def config(**values):
    return registry.configure(METHOD, {**SMALL, **values})


def network(seed=0, **values):
    torch.manual_seed(seed)
    return METHOD.build(config(**values), SPEC)


def phase(**values):
    return METHOD.phases(config(**values))[0]


def test_a_head_shares_one_coupling_out_over_classes_and_places():
    votes = torch.randn(2, 3, 4, 5, 16, generator=torch.Generator().manual_seed(0))
    classes, coupling = route_inverted(votes, 3)
    assert classes.shape == (2, 3, 16)
    assert coupling.shape == (2, 3, 4, 5)
    torch.testing.assert_close(coupling.sum((1, 3)), torch.ones(2, 4))
    assert (classes.norm(dim=2) < 1).all()
    equal, first = route_inverted(votes, 1)
    torch.testing.assert_close(first, torch.full((2, 3, 4, 5), 1 / 15))
    torch.testing.assert_close(equal, squash(votes.sum((2, 3)) / 15))


def test_inverted_routing_by_hand():
    """One head, two places, one class: the place that agrees gains."""
    votes = torch.zeros(1, 1, 1, 2, 16)
    votes[..., 0, 0], votes[..., 1, 1] = 2.0, 1.0
    first = squash((votes[0, 0, 0, 0] + votes[0, 0, 0, 1]) / 2)
    agreement = torch.stack([first @ votes[0, 0, 0, place] for place in (0, 1)])
    _, coupling = route_inverted(votes, 2)
    torch.testing.assert_close(coupling[0, 0, 0], agreement.softmax(0))
    assert coupling[0, 0, 0, 0] > coupling[0, 0, 0, 1]


def test_each_window_is_routed_by_itself():
    torch.manual_seed(0)
    layer = WindowCapsules(2, 3)
    capsules = squash(torch.randn(2, 5, 6, 2, 16))
    found = layer(capsules)
    assert found.shape == (2, 3, 4, 3, 16)
    one = layer(capsules[1:, 1:4, 2:5])
    torch.testing.assert_close(found[1, 1, 2], one[0, 0, 0])


def test_class_capsules_and_their_maps():
    torch.manual_seed(0)
    layer = ClassCapsules(2, 3, iterations=1)
    capsules = squash(torch.randn(2, 4, 5, 2, 16))
    classes, maps = layer(capsules)
    assert classes.shape == (2, 3, 16)
    assert maps.shape == (2, 3, 2, 4, 5)
    vote = layer.weight[1, 2] @ capsules[0, 3, 1, 1].view(4, 4)
    assert maps[0, 2, 1, 3, 1].item() == pytest.approx(vote.norm().item() / (3 * 20), rel=1e-4)


def test_primary_capsules_keep_their_place():
    torch.manual_seed(0)
    layer = PrimaryCapsules(5, 3)
    x = torch.randn(1, 5, 2, 4)
    found = layer(x)
    assert found.shape == (1, 2, 4, 3, 16)
    alone = layer(x[:, :, 1:, 2:3])
    torch.testing.assert_close(found[0, 1, 2], alone[0, 0, 0])


def test_a_crop_is_the_box_enlarged():
    x = torch.arange(64.0).view(1, 1, 8, 8)
    kept = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    kept[..., 2, 5] = kept[..., 5, 3] = True  # rows 2 to 5, columns 3 to 5
    found = crop_to(x, kept, 1)
    inside = torch.nn.functional.interpolate(x[:, :, 2:6, 3:6], (8, 8), mode="bilinear")
    torch.testing.assert_close(found[..., 2:6, 2:6], inside[..., 2:6, 2:6])
    assert torch.equal(crop_to(x, torch.zeros_like(kept), 1), x)  # nothing kept: the whole picture
    torch.testing.assert_close(crop_to(x, torch.ones_like(kept), 1), x)


def test_a_crop_of_one_pixel_keeps_its_smallest_side_inside_the_picture():
    x = torch.arange(64.0).view(1, 1, 8, 8)
    kept = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    kept[..., 0, 7] = True
    corner = torch.nn.functional.interpolate(x[:, :, :4, 4:], (8, 8), mode="bilinear")
    torch.testing.assert_close(crop_to(x, kept, 4)[..., 2:6, 2:6], corner[..., 2:6, 2:6])


def test_the_spread_loss_is_the_codes():
    length = torch.tensor([[0.8, 0.3, 0.9], [0.2, 0.6, 0.1]])
    target = torch.tensor([0, 1])
    own = length.gather(1, target[:, None])
    code = torch.relu(0.4 - (own - length)).square().sum() / 2 - 0.4**2
    assert float(spread_loss(length, target, 0.4)) == pytest.approx(float(code))
    assert float(spread_loss(torch.tensor([[0.95, 0.0]]), torch.tensor([0]), 0.9)) == 0.0


@pytest.mark.parametrize(("backbone", "width"), [("resnet50", 1024), ("densenet121", 1024)])
def test_published_shape_on_the_meta_device(backbone, width):
    with torch.device("meta"):
        built = METHOD.build(METHOD.config(backbone=backbone), dataclasses.replace(SPEC, shape=(448, 448)))
        output = built(torch.zeros(2, 1, 448, 448))
    own = {k: sum(p.numel() for p in m.parameters()) for k, m in built.named_children() if k != "backbone"}
    assert own["stem"] == width * 512 + 512 + 2 * 512
    assert own["primary"] == 512 * 512 + 512
    assert own["middle"] == 2 * 9 * 32 * 32 * 16
    assert own["classes"] == 32 * 2 * 16
    assert output.logits.shape == (2, 2)
    assert output.attention.shape == (2, 1, 24, 24)  # 28 less two windows of 3
    assert output.embedding.shape == (2, 512)


def test_defaults_are_the_codes():
    defaults = METHOD.config()
    assert (defaults.lr, defaults.beta, defaults.routings, defaults.crop, defaults.drop) == (1e-5, 0.5, 3, 0.5, 0.7)
    assert (defaults.margin_first, defaults.margin_last, defaults.epochs) == (0.2, 0.9, 500)


@pytest.mark.parametrize("peekaboo", [True, False])
def test_gradients_reach_all_that_trains_and_are_finite(peekaboo):
    built, made = network(peekaboo=peekaboo), phase(peekaboo=peekaboo)
    trained = {id(p) for p in apply_freezing(built, made)}
    parts = made.loss(built, batch(4, side=96), torch.Generator().manual_seed(0))
    parts["loss"].backward()
    assert set(parts) == {"loss", "picture"} | ({"crop", "drop"} if peekaboo else set())
    for name, parameter in built.named_parameters():
        if id(parameter) in trained:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert name.startswith("backbone.trunk.layer4"), name
            assert parameter.grad is None, name


@pytest.mark.parametrize("backbone", ["resnet34", "resnet50", "densenet121", "densenet169"])
def test_what_trains_is_all_that_is_used(backbone):
    with torch.device("meta"):
        built = network(backbone=backbone)
        apply_freezing(built, phase(backbone=backbone))
        built.backbone.pyramid(torch.zeros(2, 1, 96, 96))[-2].sum().backward()
    used = {n for n, p in built.backbone.named_parameters() if p.grad is not None}
    assert used == {n for n, p in built.backbone.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("case", ["one image", "black", "half precision", "mixed precision"])
def test_loss_stays_finite(case):
    sample = batch(1 if case == "one image" else 4, side=96)
    if case == "black":
        sample = dataclasses.replace(sample, image=torch.zeros_like(sample.image))
    if case == "half precision":
        sample = dataclasses.replace(sample, image=sample.image.half())
    built = network()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "mixed precision"):
        loss = phase().loss(built, sample, torch.Generator())["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in built.parameters() if p.grad is not None)


def test_the_margin_grows_each_epoch_and_is_part_of_the_state():
    built, made = network(), phase(peekaboo=False, batch_size=4)
    made.prepare(built, iter([batch(5, side=96), batch(3, side=96)]))
    assert int(built.epoch_steps) == 2
    found = []
    for _ in range(4):
        built.eval()  # the same answer each time
        found.append(float(made.loss(built, batch(2, side=96), torch.Generator())["loss"]))
    assert found[0] == found[1] < found[2] == found[3]
    assert int(built.state_dict()["steps"]) == 4


def test_an_answer_is_the_mean_of_two_looks():
    both, one = network().eval(), network(peekaboo=False).eval()
    x = images(3, 96)
    with torch.no_grad():
        first, answer = one(x), both(x)
    assert not torch.allclose(first.logits, answer.logits)
    assert torch.equal(first.attention, answer.attention)
    torch.testing.assert_close(answer.logits, answer.poses.norm(dim=2).log(), atol=1e-4, rtol=1e-4)
    assert (answer.attention >= 0).all()


def test_answers_do_not_depend_on_the_batch():
    assert_answers_ignore_the_batch(network(), images(3, 96))


def test_learns_eight_samples_by_heart():
    values = {"lr": 5e-3, "beta": 0.9, "margin_first": 0.9, "normalise": "zscore"}
    losses = train(network(**values), phase(**values), 25, batch(side=80), goal=0.05)
    assert losses[-1] < 0.05


def test_saved_and_loaded_weights_answer_the_same(tmp_path):
    path = tmp_path / "weights.safetensors"
    assert_saved_weights_answer_the_same(network(seed=1), network(seed=2), images(2, 96), path)


def test_untrained_answers_are_undecided():
    with torch.no_grad():
        logits = network().eval()(images(4, 96)).logits
    assert -float(logits.log_softmax(1)[:, 1].mean()) == pytest.approx(math.log(2), abs=0.5)


@pytest.mark.parametrize(
    ("values", "spec", "message"),
    [
        ({}, dataclasses.replace(SPEC, shape=(64, 96)), "at least 80"),
        ({}, dataclasses.replace(SPEC, modality="ct_volume", shape=(96, 96, 96)), "not ct_volume"),
        ({"crop": 1.0}, SPEC, "crop is 1.0"),
        ({"margin_first": 0.95}, SPEC, "margins"),
        ({"capsules": [4, 0, 4]}, SPEC, "capsules"),
    ],
)
def test_what_does_not_fit_is_refused(values, spec, message):
    with pytest.raises(ConfigError, match=message):
        METHOD.build(config(**values), spec)
