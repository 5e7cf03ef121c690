"""Withdrawing a patient: which files go, and which runs have seen them."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from chestflow.data.examine import patient_id
from chestflow.data.identity import keyed_id
from chestflow.data.ingest import WITHDRAWN, withdrawn
from chestflow.data.sources.base import Row, Table, names, parse_mask_reference, read_rows, tables
from chestflow.errors import DataError
from chestflow.files import atomic_path


@dataclass(frozen=True)
class Holding:
    """What one set holds of a patient."""

    source: str
    root: Path
    rows: tuple[Row, ...]
    image_ids: tuple[str, ...]
    tables: dict[str, Table] = field(default_factory=dict)


def find(patient: str, data: Path, id_key: str) -> list[Holding]:
    """The sets under ``data`` that hold images of a patient, or lines about one.

    The sets themselves are searched and not the manifest: a broken file has no row there and must go too.

    Raises:
        DataError: such a set's folder is a link, so that originals elsewhere would be deleted.
    """
    found = []
    for source in names():
        root = data / source
        if not root.is_dir():
            continue
        rows = tuple(
            row
            for row in read_rows(source, root)
            if isinstance(row, Row) and patient_id(row, source, id_key) == patient
        )
        about = {
            name: table
            for name, table in tables(source).items()
            if _kept(root / name, table, source, patient, rows, id_key)[1]
        }
        if (rows or about) and root.is_symlink():
            raise DataError(f"{root} is a link: the originals would be deleted; put a copy in its place first")
        if rows or about:
            ids = tuple(keyed_id(source, "image", row.key, id_key) for row in rows)
            found.append(Holding(source, root, rows, ids, about))
    return found


def _kept(file: Path, table: Table, source: str, patient: str, rows: Iterable[Row], id_key: str) -> tuple[str, int]:
    """A table's text without the lines about a patient, and how many there were."""
    if not file.is_file():
        return "", 0
    keys = {row.key for row in rows}
    text = file.read_text(encoding="utf-8", errors="surrogateescape")
    if table.columns:
        return _kept_lines(text, table, keys)
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    columns = {name: place for place, name in enumerate(header)}
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n" if "\r\n" in text else "\n")
    writer.writerow(header)
    removed = 0
    for line in reader:
        value = {name: line[place] for name, place in columns.items() if place < len(line)}
        name = value.get(table.patient or "", "")
        same = bool(name) and keyed_id(table.patients_of or source, "patient", name.strip(), id_key) == patient
        if same or _names(value.get(table.image, ""), keys, table.exact):
            removed += 1
        else:
            writer.writerow(line)
    return out.getvalue(), removed


def _kept_lines(text: str, table: Table, keys: set[str]) -> tuple[str, int]:
    """The same of a list without a header, whose lines are dropped by the files that they name."""
    lines = text.splitlines(keepends=True)
    place = table.columns.index(table.image)
    kept = [
        line for line in lines if len(parts := line.split()) <= place or not _names(parts[place], keys, table.exact)
    ]
    return "".join(kept), len(lines) - len(kept)


def _names(image: str, keys: set[str], exact: bool) -> bool:
    """Whether a table's entry names one of the files: by its path as far as it is given, or by its stem alone."""
    if not image:
        return False
    if exact:
        return any(f"/{key}".endswith(f"/{image}") or f"/{image}".endswith(f"/{key}") for key in keys)
    return Path(image).stem in {Path(key).stem for key in keys} - {""}


def remove(holding: Holding, patient: str, id_key: str) -> int:
    """Delete a patient's images, masks and table lines from a set, and list the patient so that they stay away.

    Returns:
        The number of files deleted.
    """
    listed = sorted(withdrawn(holding.root) | {patient})
    with atomic_path(holding.root / WITHDRAWN) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in listed))
    files = 0
    for row in holding.rows:
        masks = [parse_mask_reference(reference)[0] for reference in (*row.lung_mask, *row.infection_mask)]
        for path in (row.path, *masks, *row.companions):
            if path.is_dir() and not path.is_symlink():
                files += sum(1 for file in path.rglob("*") if file.is_file())
                shutil.rmtree(path)
                _drop_empty(path.parent, holding.root)
            elif path.exists() or path.is_symlink():
                path.unlink()
                files += 1
    for name, table in holding.tables.items():
        text, _ = _kept(holding.root / name, table, holding.source, patient, holding.rows, id_key)
        with atomic_path(holding.root / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    return files


def _drop_empty(folder: Path, root: Path) -> None:
    """Delete a patient's own folder once its last series is gone; the folders right below the root are the layout."""
    if root not in (folder, folder.parent) and not any(folder.iterdir()):
        folder.rmdir()


def remove_derived(image_ids: Iterable[str], segmented: Path = Path("out/segment")) -> int:
    """Delete the masks that the stages segment@modality made of images; returns how many there were."""
    folders = sorted(path for path in segmented.rglob("masks") if path.is_dir())
    names = [f"{name}{ending}" for name in image_ids for ending in (".png", ".nii.gz")]
    found = [folder / name for folder in folders for name in names if (folder / name).exists()]
    for path in found:
        path.unlink()
    return len(found)
