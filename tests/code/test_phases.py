"""Phases refuse at once what would fail, or do harm, only after an epoch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from chestflow.errors import ConfigError
from chestflow.methods import registry
from chestflow.methods.registry import InputSpec
from chestflow.training.augmentation import random_affine
from chestflow.training.monitors import MONITORS
from chestflow.training.phases import Phase, drop
from chestflow.training.samplers import uniform


def phase(**values: Any) -> Phase:
    given = {"epochs": 1, "batch_size": 4, "loss": lambda *_: {}, "sampler": uniform, **values}
    return Phase(name="here", optimiser=lambda p: torch.optim.SGD(p, lr=1), **given)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"monitor": "auroc_x"}, "choose one of auroc"),
        ({"monitor": "centre_sensitivity"}, "not measured here"),
        ({"patience": 0}, "patience"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"accumulate": 0}, "accumulate"),
    ],
)
def test_impossible_phases_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"phase here: .*{says}"):
        phase(**values)


def test_a_phase_with_a_measure_may_watch_it() -> None:
    assert phase(monitor="centre_sensitivity", measure=lambda *_: {}).monitor in MONITORS


@pytest.mark.parametrize("method", ["ac_covidnet", "mag_sd", "covidnet", "baselines", "darkcovidnet", "covxnet"])
def test_a_wrong_monitor_is_refused_before_training(method: str) -> None:
    found = registry.get(method)
    config = registry.configure(found, {"monitor": "nonsense"})
    with pytest.raises(ConfigError, match="monitor is 'nonsense'"):
        found.phases(config)


@pytest.mark.parametrize(
    "values",
    [{"translate": -3.0}, {"translate": 1.0}, {"scale": 1.0}, {"brightness": -0.1}, {"flip": 1.5}, {"degrees": 1e9}],
)
def test_impossible_augmentation_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="augmentation"):
        random_affine(**values)


def test_fewer_descriptors_than_clusters_are_refused() -> None:
    method = registry.get("covidnet")
    with pytest.raises(ConfigError, match="each cluster"):
        registry.configure(method, {"clusters": 64, "vlad_descriptors": 10})


def test_scales_that_no_paper_has_are_refused() -> None:
    for method in ("mag_sd", "bcnn"):
        with pytest.raises(ConfigError, match="choose \\(7\\)"):
            registry.configure(registry.get(method), {"scales": [14, 28, 7, 3]})


def test_scales_that_the_backbone_lacks_are_refused() -> None:
    method = registry.get("mag_sd")
    config = registry.configure(method, {"backbone": "resnet18", "scales": [7, 14]})
    with pytest.raises(ConfigError, match=r"mag_sd|divide|scale"):
        method.build(config, InputSpec("cxr", (100, 70), ("rest", "covid19")))


def test_only_a_place_of_the_network_can_be_dropped() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    drop(network, ["1"])
    drop(network, ["1"])
    assert len(list(network.parameters())) == 2
    with pytest.raises(ValueError, match="does not have it"):
        drop(network, ["2"])


@pytest.mark.parametrize("method", [n for n in registry.names() if "cxr" in registry.get(n).modalities])
def test_the_embedding_is_narrow_enough_for_its_statistics(method: str) -> None:
    """The distance to what a network knows inverts the covariance of its embedding."""
    found = registry.get(method)
    config = registry.configure(found, {})
    with FakeTensorMode():
        network = found.build(config, InputSpec("cxr", (288, 288), ("normal", "pneumonia", "covid19")))
        output = network.eval()(torch.zeros(1, 1, 288, 288))
    assert output.logits.shape == (1, 3)
    assert output.embedding.shape[1] <= 4096
