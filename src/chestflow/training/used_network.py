"""Another run's network as a part of this one: built again from its description, and what it gives."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from chestflow.errors import ConfigError
from chestflow.methods import registry
from chestflow.methods.registry import InputSpec
from chestflow.nn.backbones import Backbone
from chestflow.nn.knowledge_branches import UsedBranch
from chestflow.training.phases import drop


def rebuilt(used: dict[str, Any], spec: InputSpec, cam: bool = False) -> tuple[UsedBranch, int, bool]:
    """Another run's network, not yet with its weights; its vector's width, and whether it gives a map.

    Args:
        used: its description.
        spec: what this run's slices are.
        cam: its map is to be weighted by its answer, which must be possible.

    Raises:
        ConfigError: it reads other pictures, gives neither a vector nor a map, or its answer does not follow from it.
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

    def tried(branch: UsedBranch, device: torch.device) -> tuple[int, bool, frozenset[str]]:
        image = torch.zeros(1, 1, *spec.shape, device=device)
        with torch.no_grad():
            features, vector = branch.look(image, None, None)
        mapped = features is not None and features.ndim == 4
        if cam and mapped:
            branch.explain(image, None, None)
        return vector.shape[1], mapped, idle(branch, image)

    with torch.random.fork_rng(devices=[]):
        try:
            width, mapped, unrun = tried(built(torch.device("meta")), torch.device("meta"))
        except (NotImplementedError, RuntimeError):  # a step that depends on values cannot be rehearsed without any
            width, mapped, unrun = tried(built(torch.device("cpu")), torch.device("cpu"))
        except AssertionError:
            raise ConfigError(f"uses.global: {method.name} gives neither a vector nor a map: use another run") from None
    found = built(None)
    # of pretrained weights even what the network does not use is worth taking
    found.idle = frozenset() if getattr(config, "weights", None) else unrun
    return found, width, mapped


def idle(branch: UsedBranch, image: Tensor) -> frozenset[str]:
    """Keys of its backbone's state in modules that nothing of its output depends on, so that none of them ever trained.

    That a module runs says nothing: a backbone makes all maps of its pyramid, whichever of them is read.
    """
    backbone = getattr(branch.network, "backbone", None)
    if not isinstance(backbone, Backbone):
        return frozenset()
    named = dict(backbone.requires_grad_(True).named_parameters())
    with torch.enable_grad():
        output = branch.answer(image, None, None)
        told = [t.sum() for t in (output.logits, output.features, output.embedding) if t is not None]
        gradients = torch.autograd.grad(torch.stack(told).sum(), list(named.values()), allow_unused=True)
    backbone.requires_grad_(False)
    used = {name.rpartition(".")[0] for name, found in zip(named, gradients, strict=True) if found is not None}
    return frozenset(key for key in backbone.state_dict() if key.rpartition(".")[0] not in used)
