"""COVID-CT (UCSD): CT slices cut from papers and web pages, COVID-19 and not, with the authors' train, val and test.

Layout, read from the repository's README (in a fork) and ``baseline methods/DenseNet169/DenseNet_predict.py``, and from
its files: ``Images-processed/CT_COVID/`` and ``CT_NonCOVID/`` (the two archives unpacked),
``Data-split/COVID/trainCT_COVID.txt``, ``valCT_COVID.txt``, ``testCT_COVID.txt`` and the same for ``NonCOVID``,
``COVID-CT-MetaInfo`` (File name, Patient ID, Age, Gender; .xlsx or .csv) and ``NonCOVID-CT-MetaInfo`` (image name,
patient id).

Traps: lists and sheets write ``%`` where the files have ``_``; JPEG data lie in files named ``.png`` (the format is
told by content); only COVID-19 slices are RGBA, so that the stored colour mode tells the class (slices become grey
when they are read, and validation reports the mode). A copy without the lists of the test has val as the only images
held out: they are its test then, and validation says that the split is not the published one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from chestflow.data.source_tables import number, read_lines
from chestflow.data.sources.base import Reject, Row, SourceInfo, Table, pictures, require
from chestflow.data.spreadsheet import read_sheet
from chestflow.errors import DataError

INFO = SourceInfo(
    name="covid_ct",
    title="COVID-CT",
    modalities=("ct_slice",),
    classes=("non_covid", "covid19"),
    published_counts={"non_covid": 397, "covid19": 349},
    licence="none stated",
    commercial_use=None,
    link="https://github.com/UCSD-AI4H/COVID-CT",
    official_counts={"train": 425, "tune": 118, "test": 203},
)
IMAGES, LISTS = "Images-processed", "Data-split"
LABELS = {"COVID": "covid19", "NonCOVID": "non_covid"}
SPLITS = {"train": "train", "val": "tune", "test": "test"}
#: class -> its sheet, and the columns of the file's name and of the patient in it.
SHEETS = {
    "COVID": ("COVID-CT-MetaInfo", "File name", "Patient ID"),
    "NonCOVID": ("NonCOVID-CT-MetaInfo", "image name", "patient id"),
}
TABLES = {f"{sheet}.csv": Table(image, patient) for sheet, image, patient in SHEETS.values()}
SEXES = {"M": "M", "F": "F"}


def plain(name: str) -> str:
    """A file's name as all of the set's tables can be compared: ``%`` is ``_``."""
    return name.strip().replace("%", "_")


def _sheet(root: Path, kind: str) -> dict[str, dict[str, str]]:
    """Plain name of a file -> what the class's sheet says of it, the patient under ``patient``; empty without one."""
    stem, image, patient = SHEETS[kind]
    found: dict[str, dict[str, str]] = {}
    for file in (root / f"{stem}.csv", root / f"{stem}.xlsx"):
        if file.is_file():
            lines = read_lines(file, (image, patient), "utf-8-sig") if file.suffix == ".csv" else read_sheet(file)
            for line in lines:
                if image not in line or patient not in line:
                    raise DataError(f"{file} lacks the columns {image}, {patient}: get it again from {INFO.link}")
                found.setdefault(plain(line[image]), {**line, "patient": line[patient].strip()})
            break
    return found


def _splits(root: Path, kind: str) -> dict[str, list[str]]:
    """Side of the official split -> the names that its list holds, in order."""
    found = {}
    for part, side in SPLITS.items():
        file = root / LISTS / kind / f"{part}CT_{kind}.txt"
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            found[side] = [line.strip() for line in text.splitlines() if line.strip()]
    return found


def _files(folder: Path) -> dict[str, Path]:
    """A file by its own name and by its plain one, where only one file has that."""
    by_plain: dict[str, list[Path]] = defaultdict(list)
    files = pictures(folder)
    for path in files:
        by_plain[plain(path.name)].append(path)
    return {name: paths[0] for name, paths in by_plain.items() if len(paths) == 1} | {path.name: path for path in files}


def rows(root: Path) -> Iterator[Row | Reject]:
    """One row per picture, listed or not; one reject per list entry that names no picture, or the same one again."""
    require(root, INFO, *(f"{IMAGES}/CT_{kind}" for kind in LABELS), *(f"{LISTS}/{kind}" for kind in LABELS))
    lists = {kind: _splits(root, kind) for kind in LABELS}
    require(root, INFO, *(f"{LISTS}/{kind}/trainCT_{kind}.txt" for kind in LABELS if "train" not in lists[kind]))
    held_out = any("test" in sides for sides in lists.values())
    for kind, label in LABELS.items():
        folder = f"{IMAGES}/CT_{kind}"
        files, sheet = _files(root / folder), _sheet(root, kind)
        side_of: dict[Path, str] = {}
        for side, names in lists[kind].items():
            for name in names:
                path = files.get(name) or files.get(plain(name))
                key = f"{folder}/{name}"
                if path is None:
                    yield Reject(key, "missing_file", f"the list of {side} names it, CT_{kind}/ does not hold it")
                elif path in side_of:
                    yield Reject(f"{side}/{key}", "listed_twice", "the first list that names it counts")
                else:
                    side_of[path] = side if held_out or side != "tune" else "test"
        for path in sorted(set(files.values())):
            about = sheet.get(plain(path.name), {})
            yield Row(
                key=path.relative_to(root).as_posix(),
                path=path,
                modality="ct_slice",
                label=label,
                patient=about.get("patient") or None,
                sex=SEXES.get(about.get("Gender", "").strip().upper()),
                age=number(about.get("Age", "")),
                official_split=side_of.get(path),
            )
