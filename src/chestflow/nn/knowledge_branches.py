"""The branches of paper 003's network: one of its own, and another run's network in the global one's place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chestflow.errors import ConfigError
from chestflow.imaging.cam import grad_cam
from chestflow.nn import knowledge_regions as regions
from chestflow.nn.output import Output


@dataclass
class Known:
    """What the global branch says of B slices; a frozen one says it only once.

    Attributes:
        pool: (B, E) its pooled vector; None where nothing needs it.
        box: int64 (B, 4) of the heat map's component; None where nothing needs it.
        region: bool (B, H, W), that component; None unless it masks the slice.
        features: its last map (B, F, h, w), None where remembered.
        heat: S of eq. 1 (B, 1, h, w), None where remembered.
    """

    pool: Tensor | None
    box: Tensor | None = None
    region: Tensor | None = None
    features: Tensor | None = None
    heat: Tensor | None = None


class Branch(nn.Module):
    """A classifier, and the backbone that makes its pool where it has one.

    Args:
        inputs: width of what the classifier reads.
        outputs: 1, or 2 for one of each class.
        backbone: makes the pool; None for the fusion.
        right: a second backbone for crops of the slice's right side; None leaves them to ``backbone``.
    """

    def __init__(
        self, inputs: int, outputs: int, backbone: nn.Module | None = None, right: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.right = backbone, right
        self.head = nn.Linear(inputs, outputs)
        # small, so that the first answers are near 0.5 however many pools are joined
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    @property
    def backbones(self) -> list[nn.Module]:
        """Those that it has: none, one, or the left side's and the right one's."""
        return [module for module in (self.backbone, self.right) if module is not None]

    def look(self, seen: Tensor, side: int = 0) -> tuple[Tensor, Tensor]:
        """A normalised picture's last map (B, D, h, w), and its mean (B, D) float32; ``side`` is the backbone's."""
        features: Tensor = self.backbones[side](seen)
        return features, features.float().mean((2, 3))

    def class_map(self, features: Tensor) -> Tensor:
        """Class activation map (B, 1, h, w) of the positive class, whose output is the last."""
        return regions.class_map(features, self.head.weight[-1])


class UsedBranch(nn.Module):
    """Another run's network as the global branch: its vector before the classifier, its last map. Always frozen.

    Attributes:
        idle: keys of its backbone's state that its output does not depend on, so that no training gave them a value.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.idle: frozenset[str] = frozenset()

    def train(self, mode: bool = True) -> UsedBranch:
        """Keeps the network in eval mode whatever trains around it."""
        super().train(mode)
        self.network.eval()
        return self

    def answer(self, image: Tensor, lung: Tensor | None, infection: Tensor | None) -> Output:
        """What it returns for slices (B, 1, H, W)."""
        reads = getattr(self.network, "reads_infection", False)
        output: Output = self.network(image, lung, infection) if reads else self.network(image, lung)
        return output

    def look(self, image: Tensor, lung: Tensor | None, infection: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Its map (None if it has none) and its vector (B, E), for a map alone its mean."""
        return _map_and_vector(self.answer(image, lung, infection))

    def explain(self, image: Tensor, lung: Tensor | None, infection: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`look`, and Grad-CAM of the positive class (B, 1, h, w) without gradient.

        Of a network that averages its last map for a linear head, Grad-CAM is the positive part of the class activation
        map up to a factor; it is defined for every other head too.

        Raises:
            ConfigError: the answer does not follow from the map.
        """
        through = torch.is_grad_enabled() and image.requires_grad  # somebody differentiates through this very pass
        with torch.enable_grad():
            # frozen layers give no gradients of their own: a picture that wants them makes the map want them
            output = self.answer(image if through else image.detach().clone().requires_grad_(), lung, infection)
            try:
                heat = grad_cam(output, max(2, output.logits.shape[1]) - 1)
            except (ValueError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and "not have been used" not in str(error):
                    raise
                raise ConfigError(
                    "heat_source cam: the used network's answer does not follow from its map: choose relu_sum"
                ) from None
            features, vector = _map_and_vector(output)
        assert features is not None
        return (features, vector, heat) if through else (features.detach(), vector.detach(), heat)


def _map_and_vector(output: Output) -> tuple[Tensor | None, Tensor]:
    if output.embedding is not None:
        return output.features, output.embedding.float()
    assert output.features is not None
    return output.features, output.features.float().mean((2, 3))
