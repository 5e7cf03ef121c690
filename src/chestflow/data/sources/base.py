"""What an adapter of a public data set says and yields; one module of this package per set, named as its folder.

An adapter module ``data/sources/<set>.py`` holds

- ``INFO``, a :class:`SourceInfo`, and
- ``rows(root: Path) -> Iterator[Row | Reject]``, which walks the set's own layout under ``root`` and reads tables and
  names only. Pixels are read, and faulty files refused, by :func:`chestflow.data.ingest.ingest`.

Names that an adapter yields (``key``, ``patient``, ``study``) are the source's own; ingest hashes them with a key, so
they never reach the manifest as they are.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from chestflow.data.references import RESIZED, mask_reference, parse_mask_reference
from chestflow.errors import DataError

__all__ = [
    "RESIZED",
    "Box",
    "Reject",
    "Row",
    "Source",
    "SourceInfo",
    "Table",
    "children_only",
    "get",
    "mask_reference",
    "names",
    "parse_mask_reference",
    "pictures",
    "read_rows",
    "require",
    "tables",
]

#: (x, y, width, height) in pixels, from the left and upper edge.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a set before any of its files is read."""

    name: str
    title: str
    modalities: tuple[str, ...]  # of chestflow.data.manifest.MODALITIES
    classes: tuple[str, ...]  # labels that occur
    published_counts: Mapping[str, int]  # label -> images, or patients of a volume set, as its authors state
    licence: str  # as the source states it; "none stated" where it states none
    commercial_use: bool | None  # None where no licence is stated, or where it differs from image to image
    link: str  # where the set comes from
    ages: tuple[float, float] | None = None  # years, the youngest and the oldest patient, where its authors say so
    official_counts: Mapping[str, int] = field(default_factory=dict)  # train | tune | test -> images, as stated


@dataclass(frozen=True)
class Row:
    """One image or volume as the source describes it. None is unknown, never a guess."""

    key: str  # the source's name of it, unique in the set: its path relative to the root, with /
    path: Path  # a file, or the folder of one series
    modality: str
    label: str | None
    patient: str | None = None
    patient_source: str | None = None  # who named the patient, where several sets share patients; None is the set
    study: str | None = None
    view: str | None = None
    sex: str | None = None  # F | M
    age: float | None = None  # years
    site: str | None = None
    spacing_mm: tuple[float, ...] | None = None  # (z, y, x) or (y, x); None takes what the file says
    lung_mask: tuple[str, ...] = ()  # mask references, see mask_reference; () is unknown
    infection_mask: tuple[str, ...] = ()
    boxes: tuple[Box, ...] | None = None  # of infections alone: they are where localisation looks for them
    severity: float | None = None  # Brixia score, 0 to 18
    infected_slices: tuple[int, ...] | None = None  # of a volume, from 0 at the feet; None is unknown
    infected_lobes: tuple[str, ...] | None = None  # of chestflow.data.manifest.LOBES; None is unknown
    part: str = ""  # what of the path is the image: ``slice=3``, ``window=-1350,150``; see chestflow.data.references
    official_split: str | None = None  # train | tune | test
    licence: str | None = None  # None takes the set's
    commercial_use: bool | None = None  # counts where licence is given
    companions: tuple[Path, ...] = ()  # further files about this image alone: they go with it when it is withdrawn

    @property
    def reference(self) -> Path:
        """What the manifest's column ``path`` says, and the readers take."""
        return Path(f"{self.path}@{self.part}") if self.part else self.path


@dataclass(frozen=True)
class Reject:
    """Something the set lists that cannot be used, known without reading pixels (a missing file, say)."""

    key: str
    reason: str
    detail: str = field(default="")  # free of names that identify a person


@dataclass(frozen=True)
class Table:
    """A table of a set whose rows are about images or patients, so that a withdrawn patient's rows can go too."""

    image: str  # column that names the image's file
    patient: str | None = None  # column that names the patient
    patients_of: str | None = None  # whose names those are, as Row.patient_source; None is the set
    exact: bool = False  # the image column is the end of the file's path, or holds it: stems alone would mix patients
    columns: tuple[str, ...] = ()  # of a list without a header, whose columns are separated by blanks


class Source(Protocol):
    """An adapter module. It may also hold ``TABLES: dict[str, Table]``, by path below the set's root."""

    INFO: SourceInfo

    def rows(self, root: Path) -> Iterator[Row | Reject]:
        """Walk the set under ``root``; raise :class:`DataError` where its layout is another."""
        ...


#: Modules of this package that are no adapters.
NO_ADAPTERS = ("base", "unsupported")

#: Years; below it a patient is a child.
ADULT = 18.0


def names() -> list[str]:
    """All known sets, in order, without importing their adapters."""
    package = importlib.import_module("chestflow.data.sources")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name not in NO_ADAPTERS)


def get(name: str) -> Source:
    """The adapter of a set.

    Raises:
        DataError: no adapter has this name.
    """
    if name not in names():
        raise DataError(f"no adapter reads the set {name!r}; known are {', '.join(names())}")
    return cast(Source, importlib.import_module(f"chestflow.data.sources.{name}"))


def children_only(info: SourceInfo) -> bool:
    """Whether all patients of a set are children, by the ages that its authors state."""
    return info.ages is not None and info.ages[1] < ADULT


def tables(name: str) -> dict[str, Table]:
    """The tables of a set whose rows are about images or patients, by path below its root."""
    return dict(getattr(get(name), "TABLES", {}))


def read_rows(name: str, root: Path) -> Iterator[Row | Reject]:
    """Rows of a set, after a check that its folder is there.

    Raises:
        DataError: the set is unknown, its folder is missing, or the folder has another layout.
    """
    source = get(name)
    if not root.is_dir():
        raise DataError(
            f"the folder {root} is missing: get {source.INFO.title} from {source.INFO.link} and run "
            f"`chestflow data add {name} PATH`"
            if not source.INFO.link.startswith("chestflow ")
            else f"the folder {root} is missing: run `{source.INFO.link}`"
        )
    yield from source.rows(root)


def require(root: Path, info: SourceInfo, *needed: str) -> None:
    """Raise :class:`DataError` when ``root`` lacks one of the files or folders that the set's layout begins with."""
    missing = [name for name in needed if not (root / name).exists()]
    if missing:
        raise DataError(
            f"{root} is not laid out like {info.title}: it lacks {', '.join(repr(name) for name in missing)}; "
            f"put the set there as its source ({info.link}) ships it"
        )


def pictures(folder: Path) -> list[Path]:
    """The files of a folder in order of name, without hidden ones and what desktops leave behind."""
    leftovers = {"thumbs.db", "desktop.ini"}
    return sorted(
        path
        for path in folder.iterdir()
        if not path.is_dir() and not path.name.startswith(".") and path.name.lower() not in leftovers
    )
