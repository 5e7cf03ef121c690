"""A parametric thorax: body, fat, ribs, spine, heart, great vessels, diaphragm, and two lungs with lobes and vessels.

Lengths are in mm, densities in Hounsfield units (HU). Shapes are quadrics and barrels in a frame that is shifted,
tilted and scaled per patient, so that no two patients' pictures coincide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chestflow.data.phantom.cohort import Patient, Study
from chestflow.data.phantom.grid import Field, Grid, smooth_noise
from chestflow.data.phantom.vessels import vessel_fraction

AIR, FAT, MUSCLE, BLOOD, LIVER = -1000.0, -95.0, 45.0, 50.0, 60.0
FISSURE_HU = 160.0


@dataclass(frozen=True)
class Body:
    """Build of a patient: factors around 1, lengths in mm, angles in radians."""

    height: float
    width: float
    depth: float
    fat_mm: float
    shift_mm: tuple[float, float, float]
    tilt: float
    heart: float
    dome_mm: float
    rib_phase: float
    rib_pitch_mm: float
    lung_hu: float
    gravity_hu: float
    breast_mm: float
    aorta_mm: float
    middle_mm: float

    @classmethod
    def of(cls, patient: Patient) -> Body:
        """Draw a build; women are a little smaller."""
        rng = patient.stream("body")
        scale = 0.94 if patient.sex == "F" else 1.0
        n = rng.standard_normal(15)
        return cls(
            height=scale * (1 + 0.07 * n[0]),
            width=scale * float(np.clip(1 + 0.06 * n[1], 0.86, 1.1)),
            depth=float(np.clip(1 + 0.07 * n[2], 0.84, 1.16)),
            fat_mm=float(np.clip(14 + 6 * n[3], 5, 28)),
            shift_mm=(float(np.clip(10 * n[4], -16, 16)), 6 * n[5], float(np.clip(10 * n[6], -20, 20))),
            tilt=float(np.clip(0.06 * n[7], -0.13, 0.13)),
            heart=float(np.clip(1 + 0.10 * n[8] + 0.002 * (patient.age - 54), 0.8, 1.3)),
            dome_mm=float(np.clip(34 + 7 * n[9], 18, 52)),
            rib_phase=float(rng.uniform(0, 2 * np.pi)),
            rib_pitch_mm=27 * scale * (1 + 0.05 * n[10]),
            lung_hu=-845 + 32 * n[11],
            gravity_hu=float(np.clip(40 + 25 * n[12], 0, 110)),
            breast_mm=float(rng.uniform(12, 32)) if patient.sex == "F" else 0.0,
            aorta_mm=float(np.clip(17 + 2 * n[13], 13, 22)),
            middle_mm=float(np.clip(27 + 4 * n[14], 20, 36)),
        )


@dataclass(frozen=True)
class Thorax:
    """A sampled thorax; fields are (Z, Y, X).

    Attributes:
        hu: everything but infection.
        inside: depth below the lungs' surface in mm, negative outside.
        pleura: 0 on the axis of a lung, 1 on its outer surface; only meaningful in the lungs.
        height: -1 at the base of the lungs to 1 at their apex, (Z, 1, X) since the body may be tilted.
        lobe: 0 outside; right upper, middle, lower = 1, 2, 3; left upper, lower = 4, 5.
    """

    grid: Grid
    body: Body
    hu: Field
    inside: Field
    pleura: Field
    lobe: np.ndarray
    x: Field
    y: Field
    z: Field

    @property
    def lung(self) -> np.ndarray:
        """Both lungs, vessels and fissures included."""
        return self.inside >= 0


def build(patient: Patient, study: Study, grid: Grid) -> Thorax:
    """Sample a patient's thorax, as it is during one study, on a grid."""
    body = Body.of(patient)
    z0, y0, x0 = grid.axes()
    # the frame of the body: shifted and tilted in the frontal plane
    dz, dy, dx = body.shift_mm
    cos, sin = np.cos(body.tilt), np.sin(body.tilt)
    z = ((z0 - dz) * cos - (x0 - dx) * sin) / body.height
    x = ((z0 - dz) * sin + (x0 - dx) * cos) / body.width
    y = (y0 - dy) / body.depth
    inside, pleura = _lungs(body, study, z, y, x)
    hu = _solid(body, grid, z, y, x)
    hu = _lung_tissue(patient, study, body, grid, hu, inside, pleura, (z, y, x))
    lobe = _lobes(body, inside, z, y, x)
    return Thorax(grid, body, hu, inside, pleura, lobe, x, y, z)


def heart(body: Body, z: Field, y: Field, x: Field) -> Field:
    """Depth in the heart and great vessels in mm, negative outside."""
    lean = 0.35 * (z + 55)
    ventricles = _ball(((x - 20 + lean) / 58, (y + 34) / 48, (z + 58) / 52), 52 * body.heart, body.heart)
    arch = _ball(((x - 24) / body.aorta_mm, (y - 8) / 30, (z - 42) / body.aorta_mm), body.aorta_mm)
    middle = (1 - np.sqrt((x / body.middle_mm) ** 2 + ((y - 4) / 78) ** 2)) * body.middle_mm
    return np.maximum(np.maximum(ventricles, arch), middle)


def _ball(scaled: tuple[Field, Field, Field], radius: float, factor: float = 1.0) -> Field:
    """Depth in an ellipsoid whose normalised coordinates are given, about exact near its surface."""
    a, b, c = scaled
    return (1 - np.sqrt(a**2 + b**2 + c**2) / factor) * radius


def _lungs(body: Body, study: Study, z: Field, y: Field, x: Field) -> tuple[Field, Field]:
    """Depth in the lungs in mm, and the radial coordinate of each lung."""
    t = (z + 22) / 138
    taper = 1 - 0.30 * np.clip(t, 0, 1) ** 2
    left = x > 0
    half = np.where(left, 57.0, 61.0)
    u = (np.abs(x) - 71) / (half * taper)
    v = (y - 5) / (88 * (1 - 0.22 * np.clip(t, 0, 1) ** 2))
    pleura = np.sqrt(u**2 + v**2 + (t * t) ** 2)
    outer = (1 - pleura) * 58
    # the right dome stands higher, over the liver
    base = np.where(left, -112.0, -102.0) - study.inspiration_mm
    dome = z - base - body.dome_mm * np.clip(1 - u**2 - v**2, 0, None)
    spine = np.sqrt(x**2 + (y - 80) ** 2) - 27
    inside = np.minimum(np.minimum(outer, dome * 0.9), np.minimum(-heart(body, z, y, x), spine))
    return inside, pleura


def _solid(body: Body, grid: Grid, z: Field, y: Field, x: Field) -> Field:
    """HU of body, bones and organs as if there were no lungs."""
    voxel = grid.spacing_mm[2]
    narrow = 1 - 0.22 * np.clip((z - 105) / 50, 0, 1) ** 2
    skin = (1 - np.sqrt((x / (158 * narrow)) ** 2 + (y / 119) ** 2)) * 119
    if body.breast_mm:
        side = _ball(((np.abs(x) - 68) / 55, (y + 108) / (body.breast_mm + 14), (z + 40) / 55), 30)
        skin = np.maximum(skin, side)
    hu = np.where(skin > body.fat_mm, MUSCLE, FAT)
    cage = (1 - np.sqrt((x / (139 * (1 - 0.25 * np.clip((z + 22) / 138, 0, 1) ** 2))) ** 2 + ((y - 5) / 99) ** 2)) * 110
    ring = np.clip(1.2 - np.abs(cage + 1) / 6, 0, 1)
    # ribs slope downwards from back to front
    wave = np.cos(2 * np.pi * (z - 0.42 * y) / body.rib_pitch_mm + body.rib_phase)
    rib = ring * np.clip((wave - 0.25) * 4, 0, 1) * (z > -125)
    hu = hu + rib * 420
    sternum = np.clip(1 - np.abs(y + 100) / 8, 0, 1) * (np.abs(x) < 16) * (np.abs(z - 20) < 75)
    hu = hu + sternum * 220
    spine = np.clip((20 - np.sqrt(x**2 + (y - 82) ** 2)) / 4, 0, 1)
    hu = hu + spine * (170 + 90 * np.cos(2 * np.pi * z / 25))
    clavicle = np.sqrt((y + 84 - 0.25 * np.abs(x)) ** 2 + (z - 96 - 0.22 * np.abs(x)) ** 2)
    hu = hu + np.clip((8 - clavicle) / 3, 0, 1) * (np.abs(x) > 14) * (np.abs(x) < 130) * 380
    hu = np.where(heart(body, z, y, x) > 0, np.maximum(hu, BLOOD), hu)
    windpipe = np.sqrt((x + 2) ** 2 + (y - 14) ** 2)
    hu = hu + np.clip((9 - windpipe) / 3, 0, 1) * (z > 35) * (AIR - hu)
    return hu + np.clip(0.5 - skin / voxel, 0, 1) * (AIR - hu)


def _lung_tissue(
    patient: Patient,
    study: Study,
    body: Body,
    grid: Grid,
    hu: Field,
    inside: Field,
    pleura: Field,
    frame: tuple[Field, Field, Field],
) -> Field:
    """Fill the lungs: air-filled tissue that is denser towards the back, with vessels and fissures."""
    z, y, x = frame
    texture = smooth_noise(patient.stream("texture"), (14, 16, 16), grid.shape)
    tissue = body.lung_hu + study.lung_shift_hu + body.gravity_hu * np.clip(y / 90, -1, 1) * 0.5 + 14 * texture
    vessels = vessel_fraction(patient.stream("vessels"), body, grid)
    major = np.abs(_major(z, y)) / 1.25
    minor = np.where((x < 0) & (_major(z, y) > 0), np.abs(_minor(z)), 1e3)
    plane = np.clip(1 - np.minimum(major, minor) / 3.0, 0, 1)
    tissue = tissue + plane * FISSURE_HU
    tissue = tissue + vessels * (BLOOD - tissue)
    # the share of each voxel that is lung: boundaries without stairs
    share = np.clip(0.5 + inside / grid.spacing_mm[2], 0, 1)
    return hu + share * (tissue - hu)


def _major(z: Field, y: Field) -> Field:
    """Above 0 in front of and above the oblique fissure."""
    return z + 6 - 1.05 * (y - 12)


def _minor(z: Field) -> Field:
    return z + 14


def _lobes(body: Body, inside: Field, z: Field, y: Field, x: Field) -> np.ndarray:
    """Lobe numbers of :class:`Thorax`."""
    front = _major(z, y) > 0
    right = np.where(front, np.where(_minor(z) > 0, 1, 2), 3)
    left = np.where(front, 4, 5)
    return np.where(inside >= 0, np.where(x < 0, right, left), 0).astype(np.uint8)
