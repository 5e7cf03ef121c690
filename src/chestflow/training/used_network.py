"""Another run's network as a part of this one: built again from its description, and what it gives."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from chestflow.errors import ConfigError
from chestflow.methods import registry
from chestflow.methods.registry import InputSpec
from chestflow.nn.knowledge_network import UsedBranch
from chestflow.training.phases import drop


def rebuilt(used: dict[str, Any], spec: InputSpec) -> tuple[UsedBranch, int, bool]:
    """Another run's network, not yet with its weights; its vector's width, and whether it gives a map.

    Raises:
        ConfigError: it reads other pictures, or gives neither a vector nor a map.
    """
    method, theirs = registry.get(used["method"]), InputSpec.of(used["input"])
    if (theirs.modality, theirs.shape) != (spec.modality, spec.shape):
        raise ConfigError(
            f"uses.global reads {theirs.modality} of {theirs.shape}, this run {spec.modality} of {spec.shape}:"
            " give both the same recipe"
        )
    config = registry.configure(method, used["config"], where="uses.global config")

    def built(device: torch.device | None) -> UsedBranch:
        with device or nullcontext():
            network = method.build(config, theirs)
        drop(network, used.get("dropped", ()))
        return UsedBranch(network)

    def tried(branch: UsedBranch, device: torch.device) -> tuple[int, bool]:
        with torch.no_grad():
            features, vector = branch.look(torch.zeros(1, 1, *spec.shape, device=device), None, None)
        return vector.shape[1], features is not None and features.ndim == 4

    with torch.random.fork_rng(devices=[]):
        try:
            width, mapped = tried(built(torch.device("meta")), torch.device("meta"))
        except (NotImplementedError, RuntimeError):  # a step that depends on values cannot be rehearsed without any
            width, mapped = tried(built(torch.device("cpu")), torch.device("cpu"))
        except AssertionError:
            raise ConfigError(f"uses.global: {method.name} gives neither a vector nor a map: use another run") from None
    return built(None), width, mapped
