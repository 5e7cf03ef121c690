"""Behaviour of the bilinear CNN and of its variant with attention."""

import pytest
import torch

from chestflow.errors import ConfigError
from chestflow.methods import registry
from tests.model.comparators import (
    QUICK,
    THREE,
    answers,
    batch,
    images,
    kept_while_training,
    network,
    one_by_one_as_together,
    parameters,
    spec,
    train,
    without_gradient,
)

METHOD = registry.get("bcnn")
SAME = {"backbone": "squeezenet1_1"}
ATTENTION = {"backbone": "resnet18", "second": "attention", "maps": 4}
BOTH = pytest.mark.parametrize("values", [SAME, ATTENTION], ids=["same", "attention"])


def pooled(built, output):
    """The bilinear vector that the head reads."""
    with torch.no_grad():
        return built.pooling(output.features, output.features if output.maps is None else output.maps)


def meta(side=224, **values):
    with torch.device("meta"):
        return METHOD.build(registry.configure(METHOD, values), spec(side, THREE))


def test_vgg16s_fifth_block_makes_262144_values():
    built = network(METHOD, classes=THREE)
    output = answers(built, count=1)
    assert output.features.shape == (1, 512, 4, 4)  # before the last pooling: a sixteenth of 64
    assert pooled(built, output).shape == (1, 262_144)
    assert output.embedding.shape == (1, 512)  # what unusual inputs are told by
    assert output.logits.shape == (1, 3)
    assert parameters(built.head) == 262_144 * 3 + 3
    assert parameters(built) == parameters(built.backbone) + parameters(built.head)


def test_attention_over_resnet50_makes_65536_values():
    built = network(METHOD, classes=THREE, backbone="resnet50", second="attention")
    output = answers(built, count=1)
    assert output.maps.shape == (1, 32, 2, 2)
    assert output.attention.shape == (1, 1, 2, 2)
    assert pooled(built, output).shape == (1, 65_536)
    assert parameters(built.attention) == 32 * (1024 + 2048) + 2 * 2 * 32


@BOTH
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given", [1, 3])
def test_shapes(values, channels, given):
    built = network(METHOD, **values, channels=channels)
    output = answers(built, channels=given)
    assert output.logits.shape == (2, 2)
    torch.testing.assert_close(pooled(built, output).norm(dim=1), torch.ones(2))
    torch.testing.assert_close(output.logits, built.head(built.scale * pooled(built, output)))
    assert (output.maps is None) == (values is SAME)


def test_the_vector_is_the_outer_product_of_the_map_with_itself():
    built = network(METHOD, **SAME).eval()
    with torch.no_grad():
        output = built(images(1))
    cells = output.features[0].flatten(1).double()
    outer = torch.zeros(512, 512, dtype=torch.float64)
    for cell in cells.T:
        outer += torch.outer(cell, cell) / cells.shape[1]
    expected = outer.sign() * (outer.abs() + 1e-6).sqrt()
    expected = (expected / expected.norm()).flatten().float()
    torch.testing.assert_close(pooled(built, output)[0], expected, atol=1e-5, rtol=1e-3)


@BOTH
def test_gradient_reaches_everything(values):
    assert not without_gradient(METHOD, network(METHOD, **values), **values)


@BOTH
def test_learns_eight_samples_by_heart(values):
    values = {**QUICK, **values, "lr": 3e-4}
    assert train(METHOD, network(METHOD, **values), 100, batch(), **values)[-1] < 0.05


@BOTH
def test_answers_do_not_depend_on_the_batch(values):
    assert one_by_one_as_together(network(METHOD, **values))


@BOTH
def test_frozen_backbone_stays_bit_for_bit(values):
    values = {**QUICK, **values, "freeze_backbone": True}
    built = network(METHOD, **values)
    frozen = {k for k in built.state_dict() if k.startswith(("backbone.", "input."))}
    assert kept_while_training(METHOD, built, 2, **values) == frozen


@BOTH
@pytest.mark.parametrize("case", ["black", "one class", "half precision"])
def test_loss_and_gradients_stay_finite(values, case):
    built = network(METHOD, **values)
    phase = METHOD.phases(registry.configure(METHOD, values))[0]
    sample = batch(4)
    if case == "black":
        sample.image.zero_()
    if case == "one class":
        sample.target.zero_()
    if case == "half precision":
        sample.image = sample.image.half()
    loss = phase.loss(built, sample, torch.Generator().manual_seed(0))["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in built.parameters() if p.grad is not None)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="at least 75 pixels"):
        meta(74, backbone="inception_v3")
    with pytest.raises(ConfigError, match="do not divide evenly"):
        meta(224, backbone="squeezenet1_1", second="attention")
    with pytest.raises(ConfigError, match="scales"):
        meta(224, backbone="resnet18", second="attention", scales=[7, 14, 28, 56, 112])
    for values in ({"maps": 0}, {"feature_scale": 0.0}, {"scales": []}, {"second": "third"}):
        with pytest.raises(ConfigError):
            registry.configure(METHOD, values)
