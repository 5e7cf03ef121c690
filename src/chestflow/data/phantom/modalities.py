"""What the scanners make of a thorax: a CT volume, axial slices, and a frontal X-ray by Beer-Lambert projection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from chestflow.data.phantom import markers
from chestflow.data.phantom.anatomy import Thorax
from chestflow.data.phantom.cohort import Patient, Study
from chestflow.data.phantom.grid import Field, pair_means
from chestflow.data.phantom.lesions import infect

#: Attenuation of water at the mean energy of a chest X-ray, per mm.
WATER_PER_MM = 0.019
#: Not physical: an infection's added attenuation on the X-ray is multiplied by it. Real readers see ground glass with
#: years of training and megapixels; a small network on a small picture of a small cohort gets this much help.
XRAY_LESION_GAIN = 1.0
#: Steps of stored HU: noise in steps compresses, and steps far below the noise lose nothing.
HU_STEP = 8
XRAY_STEPS = 1024
#: Attenuation that is stored as black and as white, at a middling exposure.
XRAY_DARK, XRAY_BRIGHT = 0.15, 6.4
#: Deviation of a person's place before the X-ray detector, in mm.
POSITION_MM = 9.0
LUNG_WINDOW = (-1350.0, 150.0)  # width 1500, centre -600


@dataclass(frozen=True)
class Ct:
    """A CT volume: HU int16 and masks, all (Z, Y, X)."""

    hu: NDArray[np.int16]
    lung: NDArray[np.bool_]
    infection: NDArray[np.bool_]
    spacing_mm: tuple[float, float, float]

    @property
    def ratio(self) -> float:
        """Infected share of the lung volume."""
        return float(self.infection.sum() / self.lung.sum())


@dataclass(frozen=True)
class Slice:
    """An axial slice: 8-bit picture in the lung window, front at the top, and masks, all (Y, X)."""

    level: int
    pixels: NDArray[np.uint8]
    lung: NDArray[np.bool_]
    infection: NDArray[np.bool_]

    @property
    def ratio(self) -> float:
        """Infected share of the lung area."""
        return float(self.infection.sum() / max(1, self.lung.sum()))


@dataclass(frozen=True)
class Xray:
    """A frontal X-ray: stored values (bright is dense), projected masks (H, W), and the volume's ratio."""

    pixels: NDArray[np.uint16]
    lung: NDArray[np.bool_]
    infection: NDArray[np.bool_]
    spacing_mm: tuple[float, float]
    ratio: float


def ct(patient: Patient, study: Study, thorax: Thorax) -> Ct:
    """Scan: slices twice as thick as the thorax is sampled, noise of the site, steps of :data:`HU_STEP`."""
    infected = infect(patient, thorax, study.ct_ratio)
    hu = pair_means(infected.hu)
    lung = pair_means(thorax.lung.astype(np.float64)) >= 0.5
    infection = (pair_means(infected.mask.astype(np.float64)) >= 0.5) & lung
    noise = patient.stream("ct_noise", study.number).standard_normal(hu.shape) * patient.site.ct_noise_hu
    # air around the body carries little of it
    hu = hu + patient.site.hu_offset + np.where(hu < -980, 0.0, noise)
    if study.marker:
        _rod(hu)
    stored = np.clip(np.rint(hu / HU_STEP) * HU_STEP, -1024, 1600).astype(np.int16)
    z, y, x = thorax.grid.spacing_mm
    return Ct(stored, lung, infection, (2 * z, y, x))


def _rod(hu: Field) -> None:
    """The planted shortcut in a volume: a metal rod along the table, in every slice's corner."""
    hu[:, -5:-2, 2:5] = 1500


def slices(patient: Patient, study: Study, volume: Ct) -> list[Slice]:
    """Up to three slices, one from each third of the lungs' height.

    Of an infected patient, the slice of each third with most infection, where it holds at least 1 % of the lung area
    (and always the best of all): a slice without a sign would carry a label that nobody can see. Of a healthy one, a
    slice of each third at random.
    """
    rng = patient.stream("slices", study.number)
    area = volume.lung.sum((1, 2))
    levels = np.flatnonzero(area > 0.35 * area.max())
    infected = volume.infection.sum((1, 2))
    chosen = []
    for third in np.array_split(levels, 3):
        pick = int(rng.integers(len(third)))
        if study.ct_ratio <= 0:
            chosen.append(int(third[pick]))
            continue
        best = int(third[np.argmax(infected[third])])
        if infected[best] >= 0.01 * area[best]:
            chosen.append(best)
    if study.ct_ratio > 0 and not chosen:
        chosen = [int(np.argmax(np.where(area > 0, infected, -1)))]
    low, high = LUNG_WINDOW
    made = []
    for level in chosen:
        grey = np.clip((volume.hu[level] - low) / (high - low), 0, 1) * 255
        pixels = np.rint(grey).astype(np.uint8)
        _label(pixels, patient, study, 255)
        made.append(Slice(level, pixels, volume.lung[level], volume.infection[level]))
    return made


def xray(patient: Patient, study: Study, thorax: Thorax) -> Xray:
    """Project along the patient's depth: I = I0 exp(-sum of mu dy), mu = mu_water (1 + HU / 1000).

    What is stored is -log(I / I0), bright where dense, with blur, quantum noise, and the site's contrast curve.
    """
    infected = infect(patient, thorax, study.xray_ratio, XRAY_LESION_GAIN)
    z_mm, y_mm, x_mm = thorax.grid.spacing_mm
    mu = WATER_PER_MM * (1 + infected.hu / 1000)
    path = np.clip(mu, 0, None).sum(axis=1)[::-1] * y_mm  # head at the top
    pixel = x_mm / 2
    height, width = round(thorax.grid.extent_mm[0] / pixel), 2 * thorax.grid.shape[2]
    rng = patient.stream("xray", study.number)
    # nobody stands twice at the same place before the detector
    offset = np.clip(rng.normal(0, POSITION_MM, 2), -2 * POSITION_MM, 2 * POSITION_MM) / (z_mm, x_mm)
    path = ndimage.gaussian_filter(_resize(path, (height, width), offset), 0.8)
    noise = ndimage.gaussian_filter(rng.standard_normal((height, width)), 0.6) / 0.47
    # few photons arrive behind much tissue: the noise of -log I grows as the root of the attenuation
    path = path + patient.site.xray_noise * np.exp(0.25 * path) * noise
    bright = XRAY_BRIGHT + 0.35 * study.exposure
    grey = np.clip((path - XRAY_DARK) / (bright - XRAY_DARK), 0, 1) ** patient.site.xray_gamma
    _label(grey, patient, study, 1.0, scale=2)
    top = 2**patient.site.bits - 1
    pixels = np.rint(np.rint(grey * (XRAY_STEPS - 1)) / (XRAY_STEPS - 1) * top).astype(np.uint16)
    lung = _resize(thorax.lung.sum(axis=1)[::-1] * y_mm, (height, width), offset) >= 25
    infection = _resize(infected.mask.sum(axis=1)[::-1] * y_mm, (height, width), offset) >= 8
    ratio = float(infected.mask.sum() / thorax.lung.sum())
    return Xray(pixels, lung, infection & lung, (pixel, pixel), ratio)


def _resize(image: Field, shape: tuple[int, int], offset: Field) -> Field:
    """Cubic interpolation of (H, W) on pixel centres, moved by ``offset`` pixels of the image."""
    rows, columns = (
        (np.arange(after) + 0.5) * before / after - 0.5 + move
        for before, after, move in zip(image.shape, shape, offset, strict=True)
    )
    where = np.meshgrid(rows, columns, indexing="ij")
    return ndimage.map_coordinates(image.astype(np.float64), where, order=3, mode="nearest")


def _label(image: NDArray, patient: Patient, study: Study, value: float, scale: int = 1) -> None:
    """Burn in the site's letters, and the shortcut's where it is planted."""
    margin = 2 * scale
    left = margin if patient.site.corner == "left" else -margin
    markers.burn(image, patient.site.text, margin, left, value, scale)
    if study.marker:
        markers.burn(image, markers.SHORTCUT, -margin, -margin, value, scale)
