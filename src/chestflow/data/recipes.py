"""What a recipe does to one image or volume and its masks: pure functions from original grid to packed grid, and back.

Images: resize (area average when shrinking, linear when enlarging), then CLAHE (the order of paper 001's code), uint8.
What ``keep`` removes is black before CLAHE sees it, so that its histograms carry nothing of it into what stays.
Volumes (paper 004, section II-A): the grid of ``spacing_mm``, shrunk by one common factor
``f = min(max_downscale, D/z, H/y, W/x)`` so that the lungs keep their shape, padded with air to the recipe's size; HU
as int16. The two steps are one resampling, so that nothing is blurred twice. Masks follow by nearest neighbour and
keep their bits. Nothing is normalised here: window, z-score and ImageNet statistics are the network's first layer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from chestflow.data import keeping
from chestflow.errors import DataError

if TYPE_CHECKING:
    from chestflow.imaging.read import Radiograph, Volume

#: What surrounds a padded volume: below every window in use, so that it becomes 0 as paper 004's zero padding does.
PAD_HU = -2048
#: Highest HU kept; metal and faulty headers go far beyond and would bleed into their neighbours when averaged.
TOP_HU = 3071

#: Bit of the lungs in a mask (see :mod:`chestflow.segmentation.masks`).
LUNG = 1

AXES = ("z", "y", "x")
STARTS = {"z": "front", "y": "top", "x": "left"}
SIZES = {"z": "depth", "y": "height", "x": "width"}

Geometry = dict[str, float | int]


def apply(
    image: Radiograph | Volume, masks: NDArray[np.uint8] | None, recipe: dict[str, Any]
) -> tuple[NDArray, NDArray[np.uint8] | None, Geometry]:
    """Bring one image or volume, with its masks, to the recipe's grid.

    Args:
        image: as the readers give it.
        masks: bits on the original grid, (H, W) or (D, H, W), or None.
        recipe: the plain values of a :class:`chestflow.config.Recipe`.

    Returns:
        (H, W) uint8 in [0, 255] or (D, H, W) int16 HU; the masks on the same grid, or None; and the geometry that
        :func:`restore` needs, with ``spacing_<axis>`` of the result in mm (NaN where the source states none) and
        ``kept``, the share of the content that ``keep`` left: 0 where it needs lungs and none are known.

    Raises:
        DataError: the masks have another size than the image, or the recipe is for another kind of image.
    """
    volume = recipe["modality"] == "ct_volume"
    source: NDArray | None = getattr(image, "hu" if volume else "pixels", None)
    if source is None:
        raise DataError(f"a recipe for {recipe['modality']} was given an image of another kind: choose a fitting one")
    if masks is not None and masks.shape != source.shape:
        raise DataError(f"the masks are {masks.shape} and the image is {source.shape}: they must have one size")
    spacing = tuple(image.spacing_mm) if image.spacing_mm is not None else (float("nan"),) * source.ndim
    size = tuple(recipe["size"])
    resized: NDArray
    if volume:
        content = volume_content(source.shape, spacing, size, recipe["spacing_mm"], recipe["max_downscale"])
    else:
        content = image_content(source.shape, size, recipe["keep_aspect"])
    content_masks = None if masks is None else nearest(masks, content)
    lung = None if content_masks is None else (content_masks & LUNG) > 0
    kept = keeping.region(recipe.get("keep", "all"), content, lung)
    if volume:
        resized = np.rint(resample(np.clip(source, PAD_HU, TOP_HU), content)).astype(np.int16)
        resized[~kept] = PAD_HU
    else:
        resized = equalised(grey(image, content), recipe["clahe"], kept)
    starts = tuple((whole - part) // 2 for whole, part in zip(size, content, strict=True))
    place = tuple(slice(start, start + part) for start, part in zip(starts, content, strict=True))
    packed = resized if content == size else np.full(size, PAD_HU if volume else 0, dtype=resized.dtype)
    if content != size:
        packed[place] = resized
    packed_masks = None
    if content_masks is not None:
        packed_masks = np.zeros(size, dtype=np.uint8)
        packed_masks[place] = content_masks
    geometry = _geometry(source.shape, content, starts, spacing)
    return packed, packed_masks, {**geometry, "kept": float(kept.mean())}


def grey(image: Any, content: tuple[int, ...]) -> NDArray[np.uint8]:
    """Resize a Radiograph at its own depth, then quantise: 16 bits are averaged before they become 8."""
    pixels: NDArray[np.uint8] = replace(image, pixels=resize_plane(image.pixels, content)).uint8()
    return pixels


def equalised(
    pixels: NDArray[np.uint8], clahe_settings: dict[str, Any] | None, kept: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """What is kept of (H, W), the rest black, equalised; before padding, since bars must not enter the histograms."""
    from chestflow.imaging.intensity import clahe

    whole = bool(kept.all())
    if not whole:
        pixels = np.where(kept, pixels, np.uint8(0))
    if clahe_settings is not None:
        pixels = clahe(pixels, clahe_settings["clip"], clahe_settings["tiles"])
    # CLAHE lifts a black hole by as much as its tile is flat
    return pixels if whole else np.where(kept, pixels, np.uint8(0))


def image_content(shape: tuple[int, ...], size: tuple[int, ...], keep_aspect: bool) -> tuple[int, ...]:
    """Size of the resized image inside the padded one: all of it, or as much as one common factor fills."""
    if not keep_aspect:
        return size
    factor = min(whole / part for whole, part in zip(size, shape, strict=True))
    return tuple(min(whole, max(1, round(part * factor))) for whole, part in zip(size, shape, strict=True))


def volume_content(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    size: tuple[int, ...],
    target_mm: list[float],
    max_downscale: float,
) -> tuple[int, ...]:
    """Size of the resampled volume inside the padded one (see the module's formula).

    Raises:
        DataError: the volume's spacing is unknown or not positive.
    """
    if not all(np.isfinite(mm) and mm > 0 for mm in spacing):
        raise DataError(f"the volume's spacing is {spacing} mm: three positive numbers are needed to resample it")
    grid = [count * mm / target for count, mm, target in zip(shape, spacing, target_mm, strict=True)]
    factor = min(max_downscale, *(whole / part for whole, part in zip(size, grid, strict=True)))
    return tuple(min(whole, max(1, round(part * factor))) for whole, part in zip(size, grid, strict=True))


def _geometry(
    shape: tuple[int, ...], content: tuple[int, ...], starts: tuple[int, ...], spacing: tuple[float, ...]
) -> Geometry:
    """Everything that maps packed voxels back, one plain column per number."""
    found: Geometry = {}
    for axis, before, after, start, mm in zip(AXES[-len(shape) :], shape, content, starts, spacing, strict=True):
        found |= {SIZES[axis]: before, f"content_{SIZES[axis]}": after, STARTS[axis]: start}
        found |= {f"scale_{axis}": after / before, f"spacing_{axis}": float(mm) * before / after}
    return found


def restore(packed: NDArray, geometry: Geometry) -> NDArray:
    """Bring a map or mask on the packed grid back to the original grid.

    Args:
        packed: (H, W) or (D, H, W); bool and uint8 go by nearest neighbour, floats by averages and linear steps.
        geometry: from :func:`apply`, or a row of a pack's index.
    """
    axes = AXES[-packed.ndim :]
    place = tuple(
        slice(int(geometry[STARTS[a]]), int(geometry[STARTS[a]] + geometry[f"content_{SIZES[a]}"])) for a in axes
    )
    shape = tuple(int(geometry[SIZES[a]]) for a in axes)
    if packed.dtype in (np.bool_, np.uint8):
        return nearest(packed[place], shape)
    content = np.ascontiguousarray(packed[place], dtype=np.float32)
    return resize_plane(content, shape) if packed.ndim == 2 else resample(content, shape)


def nearest(values: NDArray, shape: tuple[int, ...]) -> NDArray:
    """Nearest neighbour by voxel centres on any number of axes; no new values appear."""
    index = [
        np.minimum(((np.arange(after) + 0.5) * before / after).astype(np.intp), before - 1)
        for before, after in zip(values.shape, shape, strict=True)
    ]
    return values[np.ix_(*index)]


def resize_plane(plane: NDArray, shape: tuple[int, ...]) -> NDArray:
    """Resize (H, W): an axis that shrinks is averaged (no aliasing), one that grows is interpolated."""
    smaller = tuple(min(before, after) for before, after in zip(plane.shape, shape, strict=True))
    if smaller != plane.shape:
        plane = cv2.resize(plane, smaller[::-1], interpolation=cv2.INTER_AREA)
    return plane if plane.shape == shape else cv2.resize(plane, shape[::-1], interpolation=cv2.INTER_LINEAR)


def axis_weights(before: int, after: int) -> NDArray[np.float32]:
    """Matrix (after, before) that resamples one axis: box averages when it shrinks, linear when it grows."""
    if after <= before:
        edges = np.arange(after + 1) * (before / after)
        cell = np.arange(before)
        overlap = np.minimum(edges[1:, None], cell + 1) - np.maximum(edges[:-1, None], cell)
        return (np.clip(overlap, 0, None) * (after / before)).astype(np.float32)
    centre = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    return np.clip(1 - np.abs(centre[:, None] - np.arange(before)), 0, None).astype(np.float32)


def resample(volume: NDArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Resample (D, H, W): slice by slice in the plane, then one matrix product along z.

    Separable, so as exact as a 3D area average and many times faster than a spline of the whole volume.
    """
    planes = np.empty((len(volume), *shape[1:]), dtype=np.float32)
    for index, plane in enumerate(volume):
        planes[index] = resize_plane(np.ascontiguousarray(plane, dtype=np.float32), tuple(shape[1:]))
    if shape[0] == len(volume):
        return planes
    return (axis_weights(len(volume), shape[0]) @ planes.reshape(len(planes), -1)).reshape(shape)
