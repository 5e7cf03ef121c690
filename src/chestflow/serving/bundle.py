"""What a model version holds: networks, calibration, evidence and segmenters, as safetensors and JSON.

``bundle.json`` says how the parts make an answer; nothing in the folder is code, and nothing holds a date, so that the
same training gives the same digest and is registered once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chestflow.errors import DataError, TrackingError
from chestflow.evaluation.calibration import OperatingPoint, operating_points
from chestflow.files import read_json, sha256_file, write_json
from chestflow.segmentation import places
from chestflow.serving.infection import FOLDER as INFECTION

FILE, EVIDENCE, LUNGS = "bundle.json", "evaluation.json", "cxr_lungs.safetensors"
NETWORK_FILES = ("weights.safetensors", "model.json", "embedding.safetensors")
PHANTOM_NOTICE = "PHANTOM MODEL, not for patients"


@dataclass(frozen=True)
class Member:
    """A trained network; ``part`` is single, uniform or balanced (dual sampling), or member (of a mean)."""

    run: str
    fold: int
    part: str

    @property
    def folder(self) -> str:
        return f"networks/{self.run}-{self.fold}"


@dataclass(frozen=True)
class Weighting:
    """w of the uniform network by infection ratio (paper 004, section II-D)."""

    w_extreme: float
    w_middle: float
    cut_low: float
    cut_high: float

    def at(self, ratio: float) -> float:
        """w for a ratio: the ends of the range get one value, its middle another."""
        return self.w_extreme if ratio < self.cut_low or ratio > self.cut_high else self.w_middle


@dataclass(frozen=True)
class Bundle:
    """How a model version answers. ``classes`` are in index order, the positive one last.

    Attributes:
        recipe: that of the first network's input; ``recipes`` holds, by run, those that differ from it.
        weighting: w by infection ratio, in dual sampling.
        shares: each run's weight in a mean, summing to 1; empty for any other model.
        temperature, threshold: the operating point; without a threshold the most probable class is called.
        uniform: that of dual sampling's uniform network, which answers alone where the ratio is unknown.
        reads_infection: whether an answer depends on where the infection lies, by its ratio or by the network itself;
            then the bundle carries the infection segmenter.
    """

    name: str
    profile: str
    task: str
    modality: str
    classes: tuple[str, ...]
    recipe: dict[str, Any]
    members: tuple[Member, ...]
    weighting: Weighting | None
    temperature: float
    threshold: float | None
    segmentation: dict[str, float]
    phantom: bool
    licences: tuple[str, ...]
    commercial_use: str  # yes | no | unstated
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    uniform: OperatingPoint | None = None
    reads_infection: bool = False

    @property
    def point(self) -> OperatingPoint:
        """The operating point of the whole."""
        return OperatingPoint(self.temperature, self.threshold)

    def recipe_of(self, run: str) -> dict[str, Any]:
        """How a run's input is prepared."""
        return self.recipes.get(run, self.recipe)

    @property
    def notice(self) -> str:
        """What must stand before each answer; empty for a model trained on people's images."""
        return PHANTOM_NOTICE if self.phantom else ""


def write(bundle: Bundle, folder: Path, out: Path, *, lungs: bool = True, calibration: tuple[Path, ...] = ()) -> None:
    """Collect a bundle's files from the stages' outs into ``folder``.

    Raises:
        DataError: a stage's file is missing.
    """
    for member in bundle.members:
        target = folder / member.folder
        target.mkdir(parents=True, exist_ok=True)
        for name in NETWORK_FILES:
            _copy(out / "train" / member.run / str(member.fold) / name, target / name)
    for file in calibration:
        target = folder / "tune" / file.parent.parent.name / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(file, target)
    _copy(out / "evaluate" / f"{bundle.name}.json", folder / EVIDENCE)
    segmenter = places.segmented(out, "cxr") / LUNGS
    if lungs and segmenter.exists():
        _copy(segmenter, folder / LUNGS)
    if bundle.reads_infection:
        _copy_segmenter(places.infection(out, bundle.modality), folder / INFECTION, bundle.modality)
    write_json(folder / FILE, asdict(bundle))


def _copy_segmenter(source: Path, target: Path, modality: str) -> None:
    """The network that marks the infection in new files of a modality; nothing where none was trained."""
    from chestflow.segmentation import infection

    for file in infection.files(source, modality):
        target.mkdir(parents=True, exist_ok=True)
        _copy(file, target / file.name)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise DataError(f"{source} is missing: run `dvc repro` (or `make repro`) to make it") from None


def read(folder: Path) -> Bundle:
    """Read ``bundle.json``.

    Raises:
        TrackingError: it is missing, damaged, or of another version of the program.
    """
    try:
        values = read_json(folder / FILE)
        weighting, uniform = values.pop("weighting"), values.pop("uniform", None)
        members = tuple(Member(**member) for member in values.pop("members"))
        lists: dict[str, Any] = {name: tuple(values.pop(name)) for name in ("classes", "licences")}
        return Bundle(
            **values, **lists, members=members, weighting=Weighting(**weighting) if weighting is not None else None,
            uniform=OperatingPoint(**uniform) if uniform is not None else None,
        )  # fmt: skip
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise TrackingError(f"the model's {FILE} cannot be used ({error}): register the model again") from None


def digest(folder: Path) -> str:
    """A short hash of all files of a bundle."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:32]


def seal(folder: Path) -> str:
    """A hash of the two files that a promotion is judged by, kept with the version: changed evidence does not count."""
    both = sha256_file(folder / EVIDENCE) + sha256_file(folder / FILE)
    return hashlib.sha256(both.encode()).hexdigest()[:32]


def calibrated(files: list[Path]) -> OperatingPoint:
    """The operating point in use, the median over folds, which evaluate measures as ``served``.

    The most probable class is called where at least half of the folds call it.
    """
    points = [operating_points(file)[1] for file in files]
    cuts = [point.threshold for point in points if point.threshold is not None]
    return OperatingPoint(
        statistics.median(point.temperature for point in points),
        statistics.median(cuts) if 2 * len(cuts) > len(points) else None,
    )


def averaged(files: list[Path]) -> dict[str, float]:
    """Each run's weight in a mean, those in use: medians over folds, made to sum to 1."""
    used = [read_json(file)["used"] for file in files]
    middle = {run: statistics.median(float(one[run]) for one in used) for run in used[0]}
    total = sum(middle.values())
    if not total > 0:  # each fold leaves out other members
        return {run: statistics.fmean(float(one[run]) for one in used) for run in middle}
    return {run: share / total for run, share in middle.items()}


def weighted(files: list[Path]) -> Weighting:
    """The ensemble's w and cuts: the paper's or the tuned ones as each fold says, medians over folds."""
    names = ("w_extreme", "w_middle", "cut_low", "cut_high")
    used = []
    for file in files:
        used.append(read_json(file)["used"])
    return Weighting(*(statistics.median(float(value[name]) for value in used) for name in names))
