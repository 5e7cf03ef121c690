"""Behaviour of the pyramid network and the U-Net as classifiers."""

import pytest
import torch

from chestflow.errors import ConfigError
from chestflow.methods import registry
from chestflow.nn.backbones import CHANNELS, MIN_SIDE, PYRAMID_CHANNELS, QUARTER
from tests.model.comparators import (
    QUICK,
    THREE,
    answers,
    batch,
    generator,
    kept_while_training,
    network,
    one_by_one_as_together,
    parameters,
    spec,
    train,
    without_gradient,
)

FPN, UNET = registry.get("fpn"), registry.get("unet_classifier")
BOTH = pytest.mark.parametrize("method", [FPN, UNET], ids=lambda m: m.name)
NARROW = {"backbone": "resnet18", "width": 16}


def meta(method, side=224, **values):
    with torch.device("meta"):
        return method.build(registry.configure(method, values), spec(side, THREE))


@BOTH
@pytest.mark.parametrize("name", CHANNELS)
def test_shapes_over_every_backbone(method, name):
    with torch.device("meta"):
        for side in (MIN_SIDE[name], 224):
            built = meta(method, side, backbone=name).eval()
            output = built(torch.empty(2, 1, side, side))
            assert output.logits.shape == (2, 3)
            assert output.embedding.shape == (2, built.head.in_features)


@BOTH
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given", [1, 3])
def test_one_and_three_channels(method, channels, given):
    built = network(method, **NARROW, channels=channels)
    assert answers(built, channels=given).logits.shape == (2, 2)


def test_parameters_over_resnet50():
    trunk = parameters(meta(FPN).backbone)
    laterals = 256 * sum(PYRAMID_CHANNELS["resnet50"]) + 4 * 256
    smoothing = 4 * (256 * 256 * 9 + 256)
    assert parameters(meta(FPN)) == trunk + laterals + smoothing + 4 * 256 * 3 + 3
    assert parameters(meta(FPN, smooth=False)) == trunk + laterals + 4 * 256 * 3 + 3
    blocks = 0
    for below, skip, wide in ((2048, 1024, 512), (512, 512, 256), (256, 256, 128)):
        blocks += (below + skip) * wide * 9 + wide * wide * 9 + 4 * wide
    assert parameters(meta(UNET)) == trunk + blocks + 128 * 3 + 3


@pytest.mark.parametrize("name", CHANNELS)
def test_the_decoder_ends_at_a_quarter_of_the_image(name):
    side = 256
    with torch.device("meta"):
        built = meta(UNET, side, backbone=name).eval()
        maps = built.backbone.pyramid(torch.empty(1, 3, side, side))
        features = built(torch.empty(1, 1, side, side)).features
    assert features.shape[1] == 128
    assert features.shape[2:] == maps[QUARTER[name]].shape[2:]
    assert abs(features.shape[-1] - side / 4) <= 4  # SqueezeNet and Inception convolve without padding


def test_each_level_adds_the_coarser_one():
    built = network(FPN, **NARROW, smooth=False)
    maps = [torch.zeros(1, width, 8 // 2**i, 8 // 2**i) for i, width in enumerate(PYRAMID_CHANNELS["resnet18"])]
    for lateral in built.laterals:
        torch.nn.init.zeros_(lateral.bias)
    maps[-1] += 1.0
    levels = built.levels(maps)
    coarsest = levels[-1][0, :, 0, 0]
    assert coarsest.abs().sum() > 0
    for level in levels:
        assert torch.equal(level[0], coarsest[:, None, None].expand_as(level[0]))


@BOTH
def test_gradient_reaches_everything(method):
    assert not without_gradient(method, network(method, **NARROW), **NARROW)


@BOTH
def test_learns_eight_samples_by_heart(method):
    values = {**QUICK, **NARROW, "lr": 1e-2 if method is UNET else 1e-3}
    assert train(method, network(method, **values), 100, batch(), **values)[-1] < 0.05


@BOTH
def test_answers_do_not_depend_on_the_batch(method):
    assert one_by_one_as_together(network(method, **NARROW))


@BOTH
def test_frozen_backbone_stays_bit_for_bit(method):
    values = {**QUICK, **NARROW, "freeze_backbone": True}
    built = network(method, **values)
    frozen = {k for k in built.state_dict() if k.startswith(("backbone.", "input."))}
    assert kept_while_training(method, built, 2, **values) == frozen


@BOTH
def test_weights_reach_the_backbone(method, tmp_path):
    source = network(method, **NARROW, seed=1)
    torch.save(source.backbone.trunk.state_dict(), tmp_path / "stand_in.pth")
    built = network(method, **NARROW, seed=2)
    phase = method.phases(registry.configure(method, {**NARROW, "weights": str(tmp_path / "stand_in.pth")}))[0]
    phase.prepare(built, iter([]))
    assert torch.equal(built.backbone.trunk.conv1.weight, source.backbone.trunk.conv1.weight)


@BOTH
def test_untrained_loss_is_about_log_two(method):
    built = network(method, **NARROW)
    phase = method.phases(registry.configure(method, NARROW))[0]
    assert float(phase.loss(built, batch(), generator())["loss"].detach()) == pytest.approx(0.693, abs=0.2)


@BOTH
def test_what_does_not_fit_is_refused(method):
    with pytest.raises(ConfigError, match="at least 75 pixels"):
        method.build(registry.configure(method, {"backbone": "inception_v3"}), spec(74))
    with pytest.raises(ConfigError, match="width is 0"):
        registry.configure(method, {"width": 0})
    with pytest.raises(ConfigError, match="not ct_volume"):
        method.build(method.config(), spec(modality="ct_volume"))
