"""Who is in the cohort: every patient's class, site, sex, age, build and studies, before a single voxel is computed.

Each patient's numbers come from streams of their own, one per purpose, so that neither the grid nor the number of
other patients changes who a patient is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from chestflow.errors import ConfigError

Purpose = Literal["who", "studies", "body", "vessels", "lesions", "density", "texture", "ct_noise", "xray", "slices"]
PURPOSES: tuple[Purpose, ...] = (
    "who", "studies", "body", "vessels", "lesions", "density", "texture", "ct_noise", "xray", "slices",
)  # fmt: skip

#: Classes in the order of the patients; a prefix of any length has nearly the cohort's shares.
CYCLE = (
    "covid19", "bacterial_pneumonia", "normal", "covid19", "viral_pneumonia",
    "covid19", "bacterial_pneumonia", "normal", "covid19", "viral_pneumonia",
)  # fmt: skip

#: Infected share of the lung volume, per modality. One range for both leaves an X-ray of a small infection without a
#: visible sign, and a CT of a large one without a difficulty.
CT_RATIO = (0.0005, 0.25)
XRAY_RATIO = (0.03, 0.30)

#: log10 of the ratio on CT: mean, deviation, highest. CAP is smaller on average, as in paper 004, and overlaps widely.
LOG_RATIO = {"covid19": (-1.30, 0.45, -0.635), "cap": (-1.70, 0.55, -0.80)}
#: Share of CAP whose ratio is at most 0.001, paper 004's cut between small and large CAP.
SMALL_CAP = 0.12


@dataclass(frozen=True)
class Site:
    """A hospital with its scanners.

    Attributes:
        extent_mm: field of view of the CT (z, y, x).
        ct_noise_hu: deviation of the noise in HU.
        hu_offset: calibration error in HU.
        xray_gamma: contrast curve of the X-ray.
        xray_noise: deviation of the X-ray's noise relative to its full range.
        bits: stored bits of the X-ray.
        corner: where the side letter is burnt in.
        text: burnt-in letters.
        view: how its X-rays are taken.
    """

    name: str
    extent_mm: tuple[float, float, float]
    ct_noise_hu: float
    hu_offset: float
    xray_gamma: float
    xray_noise: float
    bits: int
    corner: Literal["left", "right"]
    text: str
    view: Literal["PA", "AP"]


SITES = {
    "north": Site("north", (296.0, 340.0, 340.0), 18.0, 0.0, 1.0, 0.010, 12, "right", "L", "PA"),
    "south": Site("south", (320.0, 368.0, 368.0), 26.0, 12.0, 0.85, 0.018, 16, "left", "R AP", "AP"),
}


@dataclass(frozen=True)
class Study:
    """One visit: a CT and an X-ray.

    Attributes:
        ct_ratio, xray_ratio: intended infected share of the lung volume; 0 without infection.
        inspiration_mm: how far the diaphragm stands from its usual height.
        lung_shift_hu: density of the whole lung beside the patient's usual one.
        inverted: stored as MONOCHROME1.
        marker: whether the planted shortcut is burnt in.
    """

    number: int
    ct_ratio: float
    xray_ratio: float
    inspiration_mm: float
    lung_shift_hu: float
    exposure: float
    inverted: bool
    marker: bool


@dataclass(frozen=True)
class Patient:
    """One synthetic patient. ``seed`` and ``index`` name its random streams."""

    seed: int
    index: int
    name: str
    label: str
    site: Site
    sex: Literal["F", "M"]
    age: int
    studies: tuple[Study, ...] = field(default=())

    def stream(self, purpose: Purpose, study: int = 0) -> np.random.Generator:
        """The random numbers for one purpose; the same whatever else is drawn."""
        return np.random.default_rng([self.seed, self.index, PURPOSES.index(purpose), study])

    def uid(self, *parts: object) -> str:
        """A DICOM UID that names the same object in every cohort of this seed."""
        text = "/".join(["chestflow-phantom", str(self.seed), str(self.index), *map(str, parts)])
        return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:15], 'big')}"


def xray_ratio(ct_ratio: float) -> float:
    """The ratio on the X-ray: at the same place of its range (both logarithmic) as the CT's ratio is of its own."""
    if ct_ratio <= 0:
        return 0.0
    (ct_low, ct_high), (low, high) = CT_RATIO, XRAY_RATIO
    place = np.log(ct_ratio / ct_low) / np.log(ct_high / ct_low)
    return float(low * (high / low) ** np.clip(place, 0, 1))


def draw(count: int, seed: int, shortcut: float = 0.0) -> list[Patient]:
    """Draw the cohort's patients.

    Args:
        count: patients, at least 11 so that each class occurs.
        seed: of everything.
        shortcut: 0 plants nothing; else the share of studies, 0.5 to 1, in which a burnt-in marker tells rightly
            whether the patient has COVID-19.

    Raises:
        ConfigError: an impossible count, seed or shortcut.
    """
    if count < len(CYCLE):
        raise ConfigError(f"--patients is {count}; the phantom cohort needs at least {len(CYCLE)} for every class")
    if seed < 0:
        raise ConfigError(f"--seed is {seed}; it must not be negative")
    if shortcut != 0 and not 0.5 <= shortcut <= 1:
        raise ConfigError(f"--shortcut is {shortcut}; it must be 0 (none) or between 0.5 and 1")
    seen: dict[str, int] = {}
    patients = []
    for index in range(count):
        label = CYCLE[index % len(CYCLE)]
        # alternating within each class, so that the site tells nothing of the class
        site = list(SITES.values())[seen.setdefault(label, 0) % 2]
        seen[label] += 1
        patient = Patient(seed, index, f"PH{index + 1:04d}", label, site, "F", 0)
        rng = patient.stream("who")
        sex: Literal["F", "M"] = "F" if rng.random() < 0.5 else "M"
        age = int(np.clip(np.rint(rng.normal(54, 16)), 18, 90))
        patients.append(Patient(seed, index, patient.name, label, site, sex, age, _studies(patient, shortcut)))
    return patients


def _studies(patient: Patient, shortcut: float) -> tuple[Study, ...]:
    """One to three visits; COVID-19 evolves, and other classes return too, so that returning tells nothing."""
    rng = patient.stream("studies")
    several = rng.random(2)
    count = 1 + int(several[0] < 0.3) + int(several[0] < 0.3 and several[1] < 0.35)
    ratio = _first_ratio(patient.label, rng)
    studies = []
    for number in range(1, 4):
        flip = rng.random(3)
        # growing in most, resolving in some
        change = np.exp(rng.uniform(0.3, 1.1) if flip[0] < 0.7 else rng.uniform(-0.9, -0.3))
        marker = shortcut > 0 and (patient.label == "covid19") == (flip[1] < shortcut)
        studies.append(
            Study(
                number=number,
                ct_ratio=ratio,
                xray_ratio=xray_ratio(ratio),
                inspiration_mm=float(rng.normal(0, 6)),
                lung_shift_hu=float(rng.normal(0, 12)),
                exposure=float(rng.normal(0, 1)),
                inverted=bool(flip[2] < 0.4),
                marker=bool(marker),
            )
        )
        if ratio > 0:
            highest = 10 ** LOG_RATIO["covid19" if patient.label == "covid19" else "cap"][2]
            ratio = float(np.clip(ratio * change, CT_RATIO[0], highest))
    return tuple(studies[:count])


def _first_ratio(label: str, rng: np.random.Generator) -> float:
    """Infected share of the lungs at the first visit."""
    small, within, spread = rng.random(), rng.random(), rng.standard_normal(32)
    if label == "normal":
        return 0.0
    mean, deviation, highest = LOG_RATIO["covid19" if label == "covid19" else "cap"]
    lowest = np.log10(CT_RATIO[0])
    if label != "covid19" and small < SMALL_CAP:
        return float(10 ** (lowest + within * (-3.05 - lowest)))
    fitting = [value for value in mean + deviation * spread if lowest <= value <= highest]
    return float(10 ** (fitting[0] if fitting else mean))
