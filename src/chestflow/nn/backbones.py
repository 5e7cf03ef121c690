"""2D convolutional backbones of torchvision, cut before their heads, for 1 or 3 input channels."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chestflow.errors import ConfigError, TrainingError

#: name -> channels of the last map. All have a total stride of 32, SqueezeNet of 16.
CHANNELS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "squeezenet1_1": 512, "densenet121": 1024}
#: what torchvision calls the layers after the last map
_HEADS = ("fc.", "classifier.")


class Backbone(nn.Module):
    """A torchvision network without its head, keeping torchvision's parameter names under ``trunk``.

    Args:
        name: a key of :data:`CHANNELS`.
        in_channels: 1 or 3.

    Raises:
        ConfigError: the name is unknown.
    """

    def __init__(self, name: str, in_channels: int = 3) -> None:
        super().__init__()
        from torchvision.models import get_model

        if name not in CHANNELS:
            raise ConfigError(f"backbone {name!r} is unknown; choose one of {', '.join(CHANNELS)}")
        self.name, self.in_channels, self.out_channels = name, in_channels, CHANNELS[name]
        self.trunk: nn.Module = get_model(name, weights=None)
        head = "fc" if name.startswith("resnet") else "classifier"
        setattr(self.trunk, head, nn.Identity())
        if in_channels != 3:
            path = stem_name(self.trunk)
            stem = self.trunk.get_submodule(path)
            assert isinstance(stem, nn.Conv2d)
            parent, _, leaf = path.rpartition(".")
            setattr(self.trunk.get_submodule(parent), leaf, narrowed(stem, in_channels))

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) to the maps of each resolution, finest first; the last is what :meth:`forward` returns."""
        trunk: Any = self.trunk
        if self.name.startswith("resnet"):
            x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(x))))
            maps = []
            for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
                x = stage(x)
                maps.append(x)
            return maps
        maps = []
        for index, layer in enumerate(trunk.features):
            after = layer(x)
            if index > 0 and after.shape[-1] < x.shape[-1]:
                maps.append(x)
            x = after
        # torchvision's DenseNet ends its features in a batch norm and applies the ReLU outside of them
        return [*maps, torch.relu(x)]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the last map (B, out_channels, h, w), non-negative."""
        return self.pyramid(x)[-1]


def stem_name(trunk: nn.Module) -> str:
    """Dotted name of the first convolution."""
    return next(name for name, module in trunk.named_modules() if isinstance(module, nn.Conv2d))


def narrowed(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """A convolution like ``conv`` for another number of input channels, freshly initialised as torchvision does."""
    new = nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def load_weights(backbone: Backbone, weights: str) -> None:
    """Fill a backbone with pretrained weights; a stem of one channel gets the sum over the RGB kernels.

    Args:
        weights: ``imagenet`` for torchvision's IMAGENET1K_V1 weights, downloaded or taken from torch's cache; else the
            path of a torchvision state dict (.pth, .pt or .safetensors).

    Raises:
        TrainingError: the weights cannot be downloaded, the file is missing or damaged, or it is of another network.
    """
    state = _imagenet(backbone.name) if weights == "imagenet" else read_state(Path(weights))
    state = {k: v for k, v in state.items() if not k.startswith(_HEADS)}
    stem = stem_name(backbone.trunk) + ".weight"
    if stem in state and backbone.in_channels == 1 and state[stem].ndim == 4 and state[stem].shape[1] == 3:
        state[stem] = state[stem].sum(1, keepdim=True)  # the same answer as the grey value repeated three times
    own = backbone.trunk.state_dict()
    wrong = sorted(k for k in own if k not in state or own[k].shape != state[k].shape) + sorted(set(state) - set(own))
    if wrong:
        raise TrainingError(
            f"weights {weights} do not fit {backbone.name}: {len(wrong)} tensors missing, unknown or of another shape,"
            f" first {wrong[0]}; give a torchvision state dict of {backbone.name}"
        )
    backbone.trunk.load_state_dict(state)


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a .safetensors or a torch file, which is read without executing anything in it.

    Raises:
        TrainingError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise TrainingError(f"weights {path} do not exist: give `imagenet`, null, or the path of a state dict")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise TrainingError(f"weights {path} cannot be read ({type(error).__name__}): fetch the file again") from None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise TrainingError(f"weights {path} hold no state dict of tensors: save model.state_dict() alone")
    return dict(state)


def _imagenet(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model, get_model_weights

    entry = get_model_weights(name)["IMAGENET1K_V1"]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    try:
        return get_model(name, weights=entry).state_dict()
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        if cached.exists():
            raise TrainingError(f"ImageNet weights {cached} are damaged: delete the file and start again") from None
        raise TrainingError(
            f"ImageNet weights of {name} cannot be downloaded ({type(error).__name__}): put {entry.url} at {cached},"
            " or set weights to the path of a state dict, or to null to train from scratch"
        ) from None
