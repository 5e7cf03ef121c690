"""Random crops, mirrors and jitter of regions and of whole slices, as the published code of COVID-CT trains.

A region is cut once: the random part of its box is drawn first and then enlarged, not a crop of an enlarged crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chestflow.nn.knowledge_regions import crop_resize, edges
from chestflow.training.phases import Augmentation, Batch


@dataclass(frozen=True)
class Strength:
    """How strongly to augment.

    Attributes:
        scale: range of the area that a crop keeps.
        ratio: range of its width over its height, relative to what it is cut from, drawn on a log scale.
        flip: probability of a left-right mirror.
        jitter: share either way by which brightness, then contrast changes.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"scale is {self.scale} (rising, in (0, 1]), ratio {self.ratio} (rising, above 0)")
        if not 0 <= self.flip <= 1 or not 0 <= self.jitter < 1:
            raise ValueError(f"flip is {self.flip} (a probability), jitter {self.jitter} (a share below 1)")


class Jitter:
    """One step's draws, all from its generator: random parts of borders, then mirrors and grey values of crops."""

    def __init__(self, strength: Strength, generator: torch.Generator) -> None:
        self.strength, self.generator = strength, generator

    def draw(self, low: float, high: float, like: Tensor) -> Tensor:
        """One number in [low, high) for each row of ``like``."""
        drawn = torch.rand(len(like), generator=self.generator, device=self.generator.device)
        return (low + (high - low) * drawn).to(like.device)

    def borders(self, border: Tensor) -> Tensor:
        """A random part of each (N, 4) border (top, left, bottom, right)."""
        area = self.draw(*self.strength.scale, border)
        low, high = self.strength.ratio
        aspect = self.draw(math.log(low), math.log(high), border).exp()
        share = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], dim=1).clamp_max(1.0)  # height, width
        place = torch.stack([self.draw(0, 1, border), self.draw(0, 1, border)], dim=1)
        start, extent = border[:, :2], border[:, 2:] - border[:, :2]
        first = start + (1 - share) * place * extent
        return torch.cat([first, first + share * extent], dim=1)

    def mirrored(self, like: Tensor) -> Tensor:
        """Bool (N,): which to mirror."""
        return self.draw(0, 1, like) < self.strength.flip

    def grey(self, crops: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 255] with other brightness and contrast, in [0, 255]."""
        jitter = self.strength.jitter
        gain = self.draw(1 - jitter, 1 + jitter, crops)[:, None, None, None]
        stretch = self.draw(1 - jitter, 1 + jitter, crops)[:, None, None, None]
        bright = (crops * gain).clamp(0.0, 255.0)
        mean = bright.mean((1, 2, 3), keepdim=True)
        return (mean + (bright - mean) * stretch).clamp(0.0, 255.0)

    def crops(self, crops: Tensor) -> Tensor:
        """Crops mirrored and jittered."""
        return mirror(self.grey(crops), self.mirrored(crops))


def mirror(x: Tensor, chosen: Tensor) -> Tensor:
    """(N, C, H, W) with the chosen ones mirrored left and right."""
    return torch.where(chosen[:, None, None, None], x.flip(-1), x)


def random_slice(strength: Strength) -> Augmentation:
    """The same for whole slices; masks move along and stay {0, 1}."""

    def augment(batch: Batch, generator: torch.Generator) -> Batch:
        jitter, image = Jitter(strength, generator), batch.image
        whole = torch.tensor([[0, 0, image.shape[2] - 1, image.shape[3] - 1]], device=image.device)
        border = jitter.borders(edges(whole.expand(len(image), -1)))
        moved = jitter.grey(crop_resize(image, border))
        chosen = jitter.mirrored(image)

        def move(mask: Tensor | None) -> Tensor | None:
            return None if mask is None else mirror((crop_resize(mask, border) >= 0.5).float(), chosen)

        return replace(batch, image=mirror(moved, chosen), lung=move(batch.lung), infection=move(batch.infection))

    return augment
