"""Infections: where they begin, how they spread, and how dense they are.

Each patient has a fixed potential over the lungs, highest at the foci; the infection of a study is the part of the
lungs above the level that holds the wanted share of their volume. So a disease that grows keeps its places.

- COVID-19: foci under the pleura of both lungs, low and towards the back, flat along the pleura; ground glass whose
  core consolidates as it grows.
- Bacterial pneumonia: one focus that fills its lobe and stops at the fissure; consolidation with a narrow rim.
- Viral pneumonia: a few foci around the bronchi of one lung, at any height; patches of mixed density.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chestflow.data.phantom.anatomy import Thorax
from chestflow.data.phantom.cohort import Patient
from chestflow.data.phantom.grid import Field, smooth_noise


@dataclass(frozen=True)
class Foci:
    """K foci in the body's frame.

    Attributes:
        centre: (K, 3) as z, y, x in mm.
        size: (K, 3) extent in mm along z, y, x: the potential falls by 1 over it.
        height: (K,) potential at the centre; the highest appear first.
    """

    centre: Field
    size: Field
    height: Field


@dataclass(frozen=True)
class Density:
    """How an infection looks: densities in HU, and how soon its core consolidates."""

    glass_hu: float
    solid_hu: float
    core: float  # height above the infection's edge from where tissue is solid
    edge: float  # height over which the edge fades
    mottle: float  # HU


@dataclass(frozen=True)
class Infection:
    """Infection of one study: its mask and what share of each voxel's tissue it replaced."""

    mask: np.ndarray
    hu: Field


def draw_foci(patient: Patient) -> Foci:
    """Draw a patient's foci; healthy patients have none."""
    rng = patient.stream("lesions")
    draw = {"covid19": _covid, "bacterial_pneumonia": _bacterial, "viral_pneumonia": _viral}[patient.label]
    return draw(rng)


def _covid(rng: np.random.Generator) -> Foci:
    count = 10
    first = rng.choice([-1.0, 1.0])
    side = first * np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
    # from the side (0) to the back (pi / 2), and a little to the front
    angle = rng.uniform(-0.35, 1.45, count)
    t = rng.uniform(-0.68, 0.02, count)
    t[4:] = rng.uniform(-0.75, 0.35, count - 4)
    reach = 0.86 * np.sqrt(np.clip(1 - t**4, 0.05, 1))
    centre = np.stack([-22 + 138 * t, 5 + 88 * reach * np.sin(angle), side * (71 + 58 * reach * np.cos(angle))], axis=1)
    along, through = rng.uniform(34, 52, count), rng.uniform(15, 22, count)
    # flat along the pleura: thin in the direction that it faces
    size = np.stack(
        [
            rng.uniform(30, 46, count),
            np.sqrt((along * np.cos(angle)) ** 2 + (through * np.sin(angle)) ** 2),
            np.sqrt((along * np.sin(angle)) ** 2 + (through * np.cos(angle)) ** 2),
        ],
        axis=1,
    )
    height = 1 - 0.11 * (np.arange(count) // 2) - rng.uniform(0, 0.04, count)
    return Foci(centre, size, height)


def _bacterial(rng: np.random.Generator) -> Foci:
    side = rng.choice([-1.0, 1.0])
    t, angle, reach = rng.uniform(-0.6, 0.7), rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.75)
    reach *= np.sqrt(max(0.2, 1 - t**4))
    centre = np.array([[-22 + 138 * t, 5 + 80 * reach * np.sin(angle), side * (71 + 52 * reach * np.cos(angle))]])
    return Foci(centre, rng.uniform(38, 60, (1, 3)), np.ones(1))


def _viral(rng: np.random.Generator) -> Foci:
    count = 5
    side = rng.choice([-1.0, 1.0])
    t, angle = rng.uniform(-0.6, 0.65, count), rng.uniform(0, 2 * np.pi, count)
    reach = rng.uniform(0.1, 0.55, count) * np.sqrt(1 - t**4)
    centre = np.stack([-22 + 138 * t, 5 + 85 * reach * np.sin(angle), side * (66 + 55 * reach * np.cos(angle))], axis=1)
    height = 1 - 0.15 * np.arange(count) - rng.uniform(0, 0.08, count)
    return Foci(centre, rng.uniform(24, 38, (count, 1)) * rng.uniform(0.85, 1.15, (count, 3)), height)


def draw_density(patient: Patient) -> Density:
    """Draw how a patient's infection looks; the kinds overlap, so that density alone does not tell them apart."""
    rng = patient.stream("density")
    u = rng.random(5)
    if patient.label == "bacterial_pneumonia":
        return Density(-420 + 150 * u[0], -110 + 140 * u[1], 0.03 + 0.09 * u[2], 0.08, 30 + 30 * u[4])
    if patient.label == "viral_pneumonia":
        return Density(-580 + 220 * u[0], -220 + 170 * u[1], 0.10 + 0.35 * u[2], 0.14, 40 + 40 * u[4])
    return Density(-620 + 190 * u[0], -290 + 150 * u[1], 0.40 + 0.5 * u[2], 0.18, 40 + 40 * u[4])


def potential(patient: Patient, foci: Foci, thorax: Thorax) -> tuple[np.ndarray, Field]:
    """The potential in the lungs.

    Returns:
        Flat indices of the lung voxels (N,), and the potential there (N,).
    """
    where = np.flatnonzero(thorax.lung)
    shape = thorax.grid.shape
    z, y, x = (np.broadcast_to(axis, shape).ravel()[where] for axis in (thorax.z, thorax.y, thorax.x))
    best = np.full(where.shape, -np.inf)
    for centre, size, height in zip(foci.centre, foci.size, foci.height, strict=True):
        far = ((z - centre[0]) / size[0]) ** 2 + ((y - centre[1]) / size[1]) ** 2 + ((x - centre[2]) / size[2]) ** 2
        best = np.maximum(best, height - np.sqrt(far))
    noise = smooth_noise(patient.stream("lesions", 1), (18, 18, 18), shape).ravel()[where]
    best = best + 0.09 * noise
    if patient.label == "bacterial_pneumonia":
        lobes = thorax.lobe.ravel()[where]
        centre = foci.centre[0]
        nearest = np.argmin((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
        # other lobes follow only when the first is full
        best = np.where(lobes == lobes[nearest], best, best - 6)
    return where, best


def infect(patient: Patient, thorax: Thorax, ratio: float, gain: float = 1.0) -> Infection:
    """Infect a share of the lungs.

    Args:
        ratio: infected share of the lung volume; 0 leaves the lungs healthy.
        gain: the added density is multiplied by it; 1 is physical.

    Returns:
        The mask, and the thorax's HU with the infection.
    """
    mask = np.zeros(thorax.grid.shape, dtype=bool)
    if ratio <= 0:
        return Infection(mask, thorax.hu)
    density = draw_density(patient)
    where, values = potential(patient, draw_foci(patient), thorax)
    count = int(np.clip(round(ratio * len(where)), 1, len(where)))
    level = np.partition(values, len(values) - count)[len(values) - count]
    above = values - level
    chosen = above >= 0
    where, above = where[chosen], above[chosen]
    mask.ravel()[where] = True
    mottle = smooth_noise(patient.stream("density", 1), (26, 30, 30), thorax.grid.shape).ravel()[where]
    solid = np.clip((above - density.core) / 0.15, 0, 1)
    target = density.glass_hu + solid * (density.solid_hu - density.glass_hu) + density.mottle * mottle
    strength = np.clip(0.55 + above / density.edge, 0, 1)
    hu = thorax.hu.copy()
    healthy = hu.ravel()[where]
    # tissue that is denser already, a vessel or the edge of the lung, stays as it is
    hu.ravel()[where] = healthy + gain * strength * np.maximum(target - healthy, 0)
    return Infection(mask, hu)
