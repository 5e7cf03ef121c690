"""What a run takes over from elsewhere in the pipeline: another run's network, a pretrained backbone, a tuned tau.

``runs.<run>.uses`` names them. The network sees them as :attr:`~chestflow.methods.registry.InputSpec.uses`, which says
enough to build it again when it is restored; their weights are loaded here, once, before the first phase.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestflow.errors import ConfigError, DataError
from chestflow.files import MODEL, WEIGHTS, read_json, sha256_file
from chestflow.methods import registry

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Where a network keeps the network of the run that it uses as its global branch.
GLOBAL = "global_branch.network"
NETWORK_KEYS = ("method", "config", "input", "dropped")


def tau_is_tuned(params: Any, run: str) -> bool:
    """Whether a stage of its own chooses the run's tau: its method has one, and its completed config leaves it open."""
    section = params.runs[run]
    return "tau" in section.config and section.config["tau"] is None and "global" in section.uses


def planned(params: Any, run: str) -> dict[str, Any]:
    """``InputSpec.uses`` as far as it follows from params.yaml alone, to check a run before anything is trained.

    A tau that is still to be tuned stands as the middle of its range.
    """
    uses = params.runs[run].uses
    found: dict[str, Any] = {}
    if "global" in uses:
        other = params.runs[uses["global"]]
        method = registry.get(other.method)
        config = registry.configure(method, other.config, where=f"runs.{uses['global']}.config")
        spec = registry.InputSpec(
            params.recipes[other.recipe].modality,
            tuple(params.recipes[other.recipe].size),
            tuple(params.tasks[other.task].classes),
            planned(params, uses["global"]),
        )
        found["global"] = {
            "method": method.name,
            "config": registry.completed(method, other.config),
            "input": asdict(spec),
            "dropped": [name for phase in method.phases(config) for name in phase.drops],
        }
    if tau_is_tuned(params, run):
        found["tau"] = sum(params.tau.range) / 2
    return found


def resolved(params: Any, run: str, fold: int, out: Path) -> dict[str, Any]:
    """The same from the outs of the stages before, as the network is built.

    Raises:
        DataError: one of them has not run.
    """
    found: dict[str, Any] = {}
    uses = params.runs[run].uses
    if "global" in uses:
        description = read_json(out / "train" / uses["global"] / str(fold) / MODEL)
        found["global"] = {key: description[key] for key in NETWORK_KEYS}
    if tau_is_tuned(params, run):
        found["tau"] = float(read_json(tau_file(run, fold, out))["tau"])
    return found


def files(params: Any, run: str, fold: int, out: Path) -> list[Path]:
    """Every file that a run takes over; they are part of what determines its result."""
    uses = params.runs[run].uses
    found = []
    if "global" in uses:
        found += [out / "train" / uses["global"] / str(fold) / name for name in (MODEL, WEIGHTS)]
    if "weights" in uses:
        found.append(out / "pretrain" / uses["weights"] / WEIGHTS)
    if tau_is_tuned(params, run):
        found.append(tau_file(run, fold, out))
    return found


def tau_file(run: str, fold: int, out: Path) -> Path:
    """The value in use alone, which training takes over: a search that ends at the same value retrains nothing."""
    return out / "tau" / run / f"{fold}.json"


def tau_evidence(run: str, fold: int, out: Path) -> Path:
    """Why that value is in use: the search of the stage tune_tau@run-fold, for the report and for MLflow."""
    return out / "tune" / "tau" / run / f"{fold}.json"


def fingerprint(params: Any, run: str, fold: int, out: Path) -> list[str]:
    """Hashes of :func:`files`, in order."""
    return [sha256_file(path) for path in files(params, run, fold, out)]


def load(network: nn.Module, params: Any, run: str, fold: int, out: Path) -> None:
    """Give a freshly built network the weights that it takes over.

    Raises:
        ConfigError: the weights do not fit, or the network has no place for them.
        DataError: a file is missing.
    """
    uses = params.runs[run].uses
    if "global" in uses:
        try:
            branch = network.get_submodule(GLOBAL)
        except AttributeError:
            raise ConfigError(
                f"runs.{run}.uses.global: method {params.runs[run].method} has no global branch: drop it"
            ) from None
        state = _weights(out / "train" / uses["global"] / str(fold) / WEIGHTS)
        _fill(branch, state, f"runs.{run}.uses.global ({uses['global']})")
    if "weights" in uses:
        state = _weights(out / "pretrain" / uses["weights"] / WEIGHTS)
        places = backbones(network)
        if not places:
            raise ConfigError(f"runs.{run}.uses.weights: method {params.runs[run].method} has no backbone to start")
        for place in places:
            _fill(place, state, f"runs.{run}.uses.weights ({uses['weights']})")


def backbones(network: nn.Module) -> list[nn.Module]:
    """The backbones that a pretraining may start: all but those of a network that is taken over whole."""
    from chestflow.nn.backbones import Backbone

    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, Backbone) and not name.startswith(GLOBAL)
    ]


def _weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise DataError(f"{path} is missing: run `dvc repro`, which makes it first")
    try:
        return load_file(path)
    except SafetensorError:
        raise DataError(f"{path} is damaged: remove it and run `dvc repro`") from None


def _fill(module: nn.Module, state: dict[str, Tensor], place: str) -> None:
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"{place}: its weights do not fit here ({first}): use the same backbone and input") from None
