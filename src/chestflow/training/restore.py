"""Saving a trained network and building it again, from safetensors and JSON alone: nothing of it is code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from chestflow.errors import ConfigError, DataError, TrainingError
from chestflow.files import MODEL, WEIGHTS, atomic_path, read_json, sha256_file, write_json
from chestflow.methods import registry
from chestflow.training.phases import drop


def save_network(folder: Path, network: nn.Module, description: dict[str, Any]) -> None:
    """Write weights and ``description``: method, config, input, the modules ``dropped``, what else is to know."""
    from safetensors.torch import save_file

    # Copies, since safetensors refuses tensors that share memory or are not in plain order.
    state = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in network.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
    write_json(folder / MODEL, {**description, "weights_sha256": sha256_file(folder / WEIGHTS)})


def load_network(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network in a training's folder, in eval mode on the CPU, and its description.

    Raises:
        TrainingError: a file is missing or damaged, or the weights do not fit the network that the description names.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    again = "train it again, or restore the folder"
    try:
        description = read_json(folder / MODEL)
        method = registry.get(description["method"])
        config = registry.configure(method, description["config"], where=f"{MODEL} config")
        network = method.build(config, registry.InputSpec.of(description["input"]))
        drop(network, description.get("dropped", ()))
    except DataError as error:
        raise TrainingError(str(error)) from None
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{folder / MODEL} describes no network that can be built ({error}): {again}") from None
    path = folder / WEIGHTS
    if not path.exists():
        raise TrainingError(f"{path} is missing: {again}")
    if sha256_file(path) != description.get("weights_sha256"):
        raise TrainingError(f"{path} is damaged, its checksum is not the one in {MODEL}: {again}")
    try:
        network.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise TrainingError(f"{path} does not fit the network in {MODEL} ({first}): {again}") from None
    return network.eval(), description
