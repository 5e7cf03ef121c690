"""2D convolutional backbones of torchvision, cut before their heads, for 1 or 3 input channels."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chestflow.errors import ConfigError, TrainingError
from chestflow.nn.input import IMAGENET_MEAN, IMAGENET_STD

#: name -> channels of each map of :meth:`Backbone.pyramid`, finest first.
PYRAMID_CHANNELS: dict[str, tuple[int, ...]] = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "squeezenet1_1": (64, 128, 256, 512),
    "densenet121": (64, 256, 512, 1024, 1024),
    "densenet169": (64, 256, 512, 1280, 1664),
    "densenet201": (64, 256, 512, 1792, 1920),
    "vgg16": (64, 128, 256, 512, 512, 512),
    "inception_v3": (64, 192, 288, 768, 2048),
    "efficientnet_b0": (16, 24, 40, 112, 1280),
}
#: name -> channels of the last map. All have a total stride of 32, SqueezeNet of 16.
CHANNELS = {name: widths[-1] for name, widths in PYRAMID_CHANNELS.items()}
#: name -> smallest side in pixels: every map of the pyramid is smaller than the one before, and the last has a cell.
MIN_SIDE = {name: 75 if name == "inception_v3" else 64 for name in CHANNELS}
#: name -> index in the pyramid of the map whose side is a quarter of the image's.
QUARTER = dict.fromkeys(CHANNELS, 1) | {"resnet18": 0, "resnet34": 0, "resnet50": 0, "vgg16": 2}
#: what torchvision calls the layers after the last map
_HEADS = ("fc.", "classifier.", "AuxLogits.")
#: Of Inception's layers, in torchvision's order; the others have theirs in ``features``.
_INCEPTION = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)
#: A layer that leaves at most this share of the width begins a new resolution; unpadded convolutions take less away.
_SHRINKS = 0.75


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
        options = {"aux_logits": False, "init_weights": True} if name == "inception_v3" else {}
        self.trunk: nn.Module = get_model(name, weights=None, **options)
        setattr(self.trunk, "fc" if hasattr(self.trunk, "fc") else "classifier", nn.Identity())
        if in_channels != 3:
            path = stem_name(self.trunk)
            stem = self.trunk.get_submodule(path)
            assert isinstance(stem, nn.Conv2d)
            parent, _, leaf = path.rpartition(".")
            setattr(self.trunk.get_submodule(parent), leaf, narrowed(stem, in_channels))

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) to the maps of each resolution, finest first; the last is what :meth:`forward` returns.

        VGG16's last two are before and after its fifth pooling.

        Raises:
            ValueError: a side is below :data:`MIN_SIDE`.
        """
        side = MIN_SIDE[self.name]
        if min(x.shape[2:]) < side:
            raise ValueError(f"images are {tuple(x.shape[2:])}; {self.name} needs at least {side} pixels a side")
        trunk: Any = self.trunk
        if self.name.startswith("resnet"):
            x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(x))))
            maps = []
            for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
                x = stage(x)
                maps.append(x)
            return maps
        inception = self.name == "inception_v3"
        layers = [getattr(trunk, layer) for layer in _INCEPTION] if inception else list(trunk.features)
        maps = []
        for index, layer in enumerate(layers):
            after = layer(x)
            if index > 0 and after.shape[-1] <= _SHRINKS * x.shape[-1]:
                maps.append(x)
            x = after
        # torchvision's DenseNet ends its features in a batch norm and applies the ReLU outside of them
        return [*maps, torch.relu(x) if self.name.startswith("densenet") else x]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the last map (B, out_channels, h, w), non-negative but for EfficientNet's (above -0.28)."""
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


def load_weights(backbone: Backbone, weights: str) -> dict[str, Tensor]:
    """Fill a backbone with pretrained weights; a stem of one channel gets the sum over the RGB kernels.

    Inception's torchvision weights expect values scaled to [-1, 1]: the change from ImageNet's mean and deviation is
    folded into its first layer.

    Args:
        weights: ``imagenet`` for torchvision's IMAGENET1K_V1 weights, downloaded or taken from torch's cache; else the
            path of a torchvision state dict (.pth, .pt or .safetensors). CheXNet's form is read too: under
            ``state_dict``, with the prefixes ``module.`` and ``densenet121.`` and DenseNet's old layer names.

    Returns:
        The tensors of the file's head, which the backbone has no place for, by torchvision's names.

    Raises:
        TrainingError: the weights cannot be downloaded, the file is missing or damaged, or it is of another network.
    """
    state = _imagenet(backbone.name) if weights == "imagenet" else read_state(Path(weights))
    state = {_plain(key, backbone.name): value for key, value in state.items()}
    head = {key: state.pop(key) for key in list(state) if key.startswith(_HEADS)}
    own = backbone.trunk.state_dict()
    # states saved before batch norm counted its batches lack the counts, which nothing here reads
    state = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")} | state
    stem = stem_name(backbone.trunk)
    if backbone.name == "inception_v3":
        state = _expecting_imagenet(state, stem)
    kernel = state.get(stem + ".weight")
    if kernel is not None and backbone.in_channels == 1 and kernel.ndim == 4 and kernel.shape[1] == 3:
        # the same answer as the grey value repeated three times
        state[stem + ".weight"] = kernel.sum(1, keepdim=True)
    wrong = sorted(k for k in own if k not in state or own[k].shape != state[k].shape) + sorted(set(state) - set(own))
    if wrong:
        raise TrainingError(
            f"weights {weights} do not fit {backbone.name}: {len(wrong)} tensors missing, unknown or of another shape,"
            f" first {wrong[0]}; give a torchvision state dict of {backbone.name}"
        )
    backbone.trunk.load_state_dict(state)
    return head


def _plain(key: str, name: str) -> str:
    """A state dict's key without what DataParallel and a wrapper put before it, in torchvision's present names."""
    key = key.removeprefix("module.").removeprefix(f"{name}.")
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", key)


def _expecting_imagenet(state: dict[str, Tensor], stem: str) -> dict[str, Tensor]:
    """Inception's state for input standardised by ImageNet's statistics instead of scaled to [-1, 1].

    With z = (v - mean) / std and v in [0, 1] the network wants 2 v - 1 = 2 std z + 2 mean - 1. The factor goes into the
    first kernel, which has no padding, and what it makes of the constant leaves the mean of the batch norm after it.
    """
    kernel, mean = state.get(stem + ".weight"), state.get(stem.replace(".conv", ".bn") + ".running_mean")
    if kernel is None or mean is None or kernel.ndim != 4 or kernel.shape[1] != 3 or len(mean) != len(kernel):
        return state  # of another network: refused where the shapes are compared
    scale = 2 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1).to(kernel)
    shift = 2 * torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).to(kernel) - 1
    moved = mean - (kernel * shift).sum((1, 2, 3))
    return state | {stem + ".weight": kernel * scale, stem.replace(".conv", ".bn") + ".running_mean": moved}


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
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
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
