"""A bundle's networks on one prepared input, through the same code that fed them in training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from chestflow.serving.abstention import load_statistics, lung_share, relative_distances
from chestflow.serving.bundle import Bundle, Member

if TYPE_CHECKING:
    from torch import Tensor, nn

    from chestflow.data.recipes import Geometry
    from chestflow.imaging.images import Volume
    from chestflow.imaging.read import Radiograph
    from chestflow.serving.infection import Marked


@dataclass(frozen=True)
class Opinion:
    """What one network says about one input.

    Attributes:
        member: which network.
        logits: (C,) float64.
        relative: distance of the embedding / threshold; above 1 is unusual.
        heat: (h, w) or (d, h, w) in [0, 1]; None where the network has no map.
        share: of lung in the input as this network saw it; None where no lungs are known.
        frame: how its grid lies on the original one.
    """

    member: Member
    logits: np.ndarray
    relative: float
    heat: np.ndarray | None
    share: float | None
    frame: Frame


@dataclass(frozen=True)
class Frame:
    """Where a prepared input lies on the original grid.

    Attributes:
        recipe: its name.
        geometry: of the resampling.
        shape: of the prepared grid.
    """

    recipe: str
    geometry: Geometry
    shape: tuple[int, ...]


class _Sample:
    """One input in the form of a pack, with the masks that are known."""

    def __init__(self, image: np.ndarray, masks: np.ndarray | None, has_lung: bool, has_infection: bool) -> None:
        self.data, self.masks = image[None], None if masks is None else masks[None]
        self.index = pd.DataFrame({"row": [0], "has_lung": [has_lung], "has_infection": [has_infection]})

    def gather(self, rows: Any, /) -> tuple[np.ndarray, np.ndarray | None]:
        return self.data, self.masks


class Networks:
    """The networks of a bundle, each loaded when it is first asked."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.bundle, self.folder = bundle, folder
        self._loaded: dict[Member, nn.Module] = {}
        self._statistics: dict[Member, dict[str, Tensor]] = {}

    def statistics(self, member: Member) -> dict[str, Tensor]:
        """Where the inputs of a network's training lay."""
        if member not in self._statistics:
            self._statistics[member] = load_statistics(self.folder / member.folder)
        return self._statistics[member]

    def network(self, member: Member) -> nn.Module:
        """A network in eval mode.

        Raises:
            TrainingError: its files are damaged.
        """
        if member not in self._loaded:
            from chestflow.training.restore import load_network

            self._loaded[member] = load_network(self.folder / member.folder)[0]
        return self._loaded[member]

    def ask(self, image: Radiograph | Volume, marked: Marked, parts: set[str]) -> list[Opinion]:
        """What the networks of these parts say, each of the input as its own recipe prepares it.

        Args:
            image: on its original grid.
            marked: its lungs and infection, as far as they are known.
            parts: of :class:`chestflow.serving.bundle.Member`.

        Raises:
            ChestflowError: a recipe cannot be applied to the image.
        """
        import torch

        from chestflow.data.recipes import apply
        from chestflow.training.inference import infer

        opinions, prepared = [], {}
        for member in self.bundle.members:
            if member.part not in parts:
                continue
            recipe = self.bundle.recipe_of(member.run)
            name = str(recipe["name"])
            if name not in prepared:
                packed, bits, geometry = apply(image, marked.bits, recipe)
                share = None if marked.lung is None else lung_share(bits)
                sample = _Sample(packed, bits, bool(share), marked.infection is not None)
                prepared[name] = (sample, share, Frame(name, geometry, packed.shape))
            sample, share, frame = prepared[name]
            found = infer(
                self.network(member),
                sample,
                np.zeros(1, np.int64),
                device=torch.device("cpu"),
                batch_size=1,
                attention=True,
            )
            heat = None if found.attention is None else found.attention[0].astype(np.float32)
            relative = float(relative_distances(found.embedding, self.statistics(member))[0])
            opinions.append(Opinion(member, found.logits[0].astype(np.float64), relative, heat, share, frame))
        return opinions
