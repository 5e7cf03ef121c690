"""Behaviour of COVID-Net, the comparator."""

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
    network,
    one_by_one_as_together,
    parameters,
    spec,
    train,
    without_gradient,
)

METHOD = registry.get("covid_net")
NARROW = {"stem": 8, "widths": [8, 12, 16, 24], "depths": [2, 2, 2, 2], "hidden": [32, 16]}


def meta(side=224, classes=THREE, **values):
    with torch.device("meta"):
        return METHOD.build(registry.configure(METHOD, values), spec(side, classes))


def test_parameters_are_those_of_the_port():
    built = meta()
    assert parameters(built) == 183_694_851  # 183.7 million
    assert parameters(built.encoder) == 2048 * 7 * 7 * 1024 + 1024
    assert parameters(meta(classes=("normal", "bacterial", "viral", "covid19"))) == 183_694_851 + 257


def test_stages_halve_the_maps():
    with torch.device("meta"):
        built = meta()
        sizes = []
        for stage in built.stages:
            stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
        built(torch.empty(1, 1, 224, 224))
    assert sizes == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]


@pytest.mark.parametrize("side", [64, 95, 97])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(side, channels):
    output = answers(network(METHOD, side, **NARROW, channels=channels), side, channels=channels)
    assert output.logits.shape == (2, 2)
    assert output.embedding.shape == (2, 32)
    assert output.features.shape[:2] == (2, 24)


def test_the_third_stage_alone_keeps_its_shortcut_from_its_blocks():
    """With the later blocks silent and the first one too, only a block that sees the shortcut could answer."""
    built = network(METHOD, **NARROW)
    for stage, sees in zip(built.stages, (True, True, False, True), strict=True):
        seen = []
        stage.blocks[1].register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(inputs[0]))
        first = []
        stage.blocks[0].register_forward_hook(lambda module, inputs, output, first=first: first.append(output))
        width = stage.shortcut.in_channels
        with torch.no_grad():
            stage(torch.rand(1, width, 8, 8))
        pooled = torch.nn.functional.max_pool2d(first[0], 2) if stage.pool else first[0]
        assert torch.equal(seen[0], pooled) == (not sees)


def test_gradient_reaches_everything():
    assert not without_gradient(METHOD, network(METHOD, **NARROW), **NARROW)


@pytest.mark.parametrize(("gain", "low", "high"), [(0.1, 0.5, 1.2), (1.0, 2.0, float("inf"))])
def test_the_first_loss_is_that_of_uniform_answers_unless_the_blocks_drown_it(gain, low, high):
    deep = {"stem": 8, "widths": [16, 32, 64, 128], "hidden": [64, 32], "block_gain": gain}
    built = network(METHOD, **deep)
    loss = torch.nn.functional.cross_entropy(built(batch().image).logits, batch().target)
    assert low < float(loss.detach()) < high


def test_learns_eight_samples_by_heart():
    values = {**QUICK, **NARROW}
    assert train(METHOD, network(METHOD, **values), 100, batch(), **values)[-1] < 0.05


def test_answers_do_not_depend_on_the_batch():
    assert one_by_one_as_together(network(METHOD, **NARROW))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="at least 64 pixels"):
        meta(63)
    with pytest.raises(ConfigError, match="not ct_volume"):
        METHOD.build(METHOD.config(), spec(modality="ct_volume"))
    with pytest.raises(ValueError, match=r"built for \(64, 64\)"):
        network(METHOD, **NARROW)(images(1, 96))
    for values in ({"widths": [8, 16]}, {"hidden": [0, 4]}, {"depths": [3, 0, 2, 1]}):
        with pytest.raises(ConfigError):
            registry.configure(METHOD, values)
