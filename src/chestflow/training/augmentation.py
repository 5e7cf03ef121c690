"""Random augmentation of whole batches on their device; masks move with the images.

Every draw comes from the given generator, so that a resumed run sees the same pictures as an uninterrupted one.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from chestflow.errors import ConfigError
from chestflow.training.phases import Augmentation, Batch


def _uniform(count: int, low: float, high: float, generator: torch.Generator, like: Tensor) -> Tensor:
    drawn = torch.rand(count, generator=generator, device=generator.device)
    return (low + (high - low) * drawn).to(like.device)


def affine_matrices(angle: Tensor, scale: Tensor, shift: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """Matrices (B, 2, 3) for ``affine_grid`` that rotate by ``angle`` (radians), enlarge by ``scale``, shift by
    ``shift`` (B, 2: x and y as shares of the width and height) and mirror left and right where ``flip`` is -1.

    The grid's units are half widths and half heights, so the rotation is corrected for the aspect ratio: a circle
    stays a circle in a picture that is not square.
    """
    height, width = size
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    top = torch.stack([flip * cos, -sin * height / width, -2 * shift[:, 0]], dim=1)
    bottom = torch.stack([flip * sin * width / height, cos, -2 * shift[:, 1]], dim=1)
    return torch.stack([top, bottom], dim=1)


def random_affine(
    *, flip: float = 0.5, degrees: float = 10.0, translate: float = 0.05, scale: float = 0.1, brightness: float = 0.1
) -> Augmentation:
    """Mirror with probability ``flip``, rotate within +- ``degrees``, shift within +- ``translate`` of the side,
    enlarge within 1 +- ``scale``, and multiply grey values within 1 +- ``brightness``. No vertical mirror.

    Images are interpolated linearly and masks by the nearest pixel; what comes from outside is 0.

    Raises:
        ConfigError: a probability or share outside [0, 1), a mirror's outside [0, 1], or degrees outside [0, 180].
    """
    shares = {"translate": translate, "scale": scale, "brightness": brightness}
    wrong = [f"{name} is {value}" for name, value in shares.items() if not 0 <= value < 1]
    if wrong or not 0 <= flip <= 1 or not 0 <= degrees <= 180:
        found = ", ".join(wrong) or f"flip is {flip}, rotate {degrees}"
        raise ConfigError(f"augmentation: {found}; shares lie in [0, 1), flip in [0, 1], rotate in [0, 180] degrees")

    def augment(batch: Batch, generator: torch.Generator) -> Batch:
        image = batch.image
        count, size = len(image), (image.shape[2], image.shape[3])
        mirrored = torch.where(_uniform(count, 0, 1, generator, image) < flip, -1.0, 1.0)
        radians = math.radians(degrees)
        angle = _uniform(count, -radians, radians, generator, image)
        larger = _uniform(count, 1 - scale, 1 + scale, generator, image)
        shift = _uniform(2 * count, -translate, translate, generator, image).view(count, 2)
        gain = _uniform(count, 1 - brightness, 1 + brightness, generator, image)
        matrices = affine_matrices(angle, larger, shift, mirrored, size)
        grid = F.affine_grid(matrices, [count, 1, *size], align_corners=False)
        moved = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        moved = (moved * gain[:, None, None, None]).clamp(0.0, 255.0)

        def move_mask(mask: Tensor | None) -> Tensor | None:
            if mask is None:
                return None
            return F.grid_sample(mask, grid, mode="nearest", padding_mode="zeros", align_corners=False)

        return replace(batch, image=moved, lung=move_mask(batch.lung), infection=move_mask(batch.infection))

    return augment


def random_mirror(probability: float = 0.5) -> Augmentation:
    """Mirror left and right (the last axis) with ``probability``, each sample by itself."""

    def augment(batch: Batch, generator: torch.Generator) -> Batch:
        chosen = _uniform(len(batch.image), 0, 1, generator, batch.image) < probability

        def mirror(x: Tensor) -> Tensor:
            return torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)

        lung = None if batch.lung is None else mirror(batch.lung)
        infection = None if batch.infection is None else mirror(batch.infection)
        return replace(batch, image=mirror(batch.image), lung=lung, infection=infection)

    return augment


def crop_matrices(extent: Tensor, centre: Tensor, angle: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """Matrices (B, 2, 3) for ``affine_grid`` that mirror, then rotate, then enlarge a part of the image to all of it.

    Args:
        extent: (B, 2), the part's width and height as shares of the image's.
        centre: (B, 2), its centre (x, y) in the grid's units, [-1, 1].
        angle: (B,) radians.
        flip: (B, 2), -1 mirrors along x or y.
        size: (H, W), by which the rotation is corrected as in :func:`affine_matrices`.
    """
    height, width = size
    cos, sin = torch.cos(angle), torch.sin(angle)
    across = torch.stack([cos, -sin * height / width], dim=1) * flip
    down = torch.stack([sin * width / height, cos], dim=1) * flip
    linear = torch.stack([across, down], dim=1) * extent[:, :, None]
    return torch.cat([linear, centre[:, :, None]], dim=2)


def _chosen(count: int, kinds: int, how: str, generator: torch.Generator, like: Tensor) -> Tensor:
    """Which of ``kinds`` each sample gets, bool (count, kinds)."""
    if how == "all_or_none":
        return (_uniform(count, 0, 1, generator, like) < 0.5)[:, None].expand(-1, kinds)
    number = _uniform(count, 0, kinds + 1, generator, like).floor()
    keys = _uniform(count * kinds, 0, 1, generator, like).view(count, kinds)
    return keys.argsort(1).argsort(1) < number[:, None]


def random_subset(
    *,
    how: str = "subset",
    brightness: tuple[float, float] = (0.5, 1.0),
    contrast: tuple[float, float] = (0.7, 1.0),
    crop: tuple[float, float] = (0.6, 1.0),
    ratio: tuple[float, float] = (0.75, 4 / 3),
    degrees: tuple[float, float] = (0.0, 120.0),
    mirror: bool = True,
    upside_down: bool = True,
) -> Augmentation:
    """Paper 001's basic augmentation (Table 2): a random number of brightness, contrast, crop, rotation, two mirrors.

    The geometry is one interpolation, so a rotated crop shows the picture's own surroundings in its corners and 0 only
    where the picture ends. Masks move by the nearest pixel.

    Args:
        how: ``subset`` draws how many of the kinds an image gets, none and all included, and then which; as the
            paper's code, ``all_or_none`` applies all to half of the images.
        brightness: range of the factor of the grey values.
        contrast: range of the factor of their distance from the image's mean.
        crop: range of the share of the area that is kept and enlarged to the whole.
        ratio: range of that part's width over its height, drawn on a log scale, for a square image.
        degrees: range of the rotation.
        mirror, upside_down: whether left-right and top-bottom mirrors are among the kinds; where drawn, a mirror is
            applied with probability 0.5 in ``all_or_none``, always in ``subset``.

    Raises:
        ValueError: ``how`` is unknown.
    """
    if how not in ("subset", "all_or_none"):
        raise ValueError(f"how is {how!r}; choose subset or all_or_none")
    kinds = ["brightness", "contrast", "crop", "rotation"] + ["mirror"] * mirror + ["upside_down"] * upside_down

    def augment(batch: Batch, generator: torch.Generator) -> Batch:
        image = batch.image
        count, size = len(image), (image.shape[2], image.shape[3])

        def draw(low: float, high: float) -> Tensor:
            return _uniform(count, low, high, generator, image)

        wanted = dict(zip(kinds, _chosen(count, len(kinds), how, generator, image).unbind(1), strict=True))
        gain = draw(*brightness).where(wanted["brightness"], 1.0)
        stretch = draw(*contrast).where(wanted["contrast"], 1.0)
        area, aspect = draw(*crop), draw(math.log(ratio[0]), math.log(ratio[1])).exp()
        extent = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=1).clamp_max(1.0)
        extent = extent.where(wanted["crop"][:, None], 1.0)
        centre = (1 - extent) * torch.stack([draw(-1, 1), draw(-1, 1)], dim=1)
        angle = draw(math.radians(degrees[0]), math.radians(degrees[1])).where(wanted["rotation"], 0.0)
        flips = []
        for kind in ("mirror", "upside_down"):
            flips.append(torch.ones(count, device=image.device))
            if kind in wanted:
                turned = wanted[kind] if how == "subset" else wanted[kind] & (draw(0, 1) < 0.5)
                flips[-1] = flips[-1].masked_fill(turned, -1.0)
        matrices = crop_matrices(extent, centre, angle, torch.stack(flips, dim=1), size)
        grid = F.affine_grid(matrices, [count, 1, *size], align_corners=False)

        def move(x: Tensor | None, mode: str) -> Tensor | None:
            return None if x is None else F.grid_sample(x, grid, mode, padding_mode="zeros", align_corners=False)

        bright = (image * gain[:, None, None, None]).clamp(0.0, 255.0)
        mean = bright.mean((1, 2, 3), keepdim=True)
        toned = (mean + (bright - mean) * stretch[:, None, None, None]).clamp(0.0, 255.0)
        moved = move(toned, "bilinear")
        assert moved is not None
        return replace(batch, image=moved, lung=move(batch.lung, "nearest"), infection=move(batch.infection, "nearest"))

    return augment
