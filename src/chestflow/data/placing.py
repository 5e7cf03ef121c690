"""Putting a downloaded set under data/, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from chestflow.data.ingest import WITHDRAWN
from chestflow.data.manifest import LABELS
from chestflow.data.phantom.layout import SETS as PHANTOMS
from chestflow.data.sources.base import Row, get, read_rows
from chestflow.errors import DataError
from chestflow.files import atomic_path

#: What version control, archives and desktops leave in a download.
LEFT_OUT = {".git", "__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"}


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, relative to it, links followed."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(set(folders) - LEFT_OUT)
        for name in sorted(set(names) - LEFT_OUT):
            yield (Path(place) / name).relative_to(folder)


def _require_space(size: int, target: Path, copies: int) -> None:
    free = shutil.disk_usage(target).free
    if size * copies > free:
        raise DataError(
            f"the set needs {size * copies / 2**30:.1f} GiB with DVC's copy, and {free / 2**30:.1f} GiB are free: "
            "make room, or use --link where the set lies on the same file system"
        )


def counts(name: str, root: Path) -> pd.DataFrame:
    """Images, or volumes, per label beside what the set's authors state: ``label, here, published`` (null: not stated).

    Raises:
        DataError: the folder is missing or laid out otherwise.
    """
    info = get(name).INFO
    labels = [row.label for row in read_rows(name, root) if isinstance(row, Row)]
    found = pd.Series([label or "unknown" for label in labels], dtype=object).value_counts()
    order = [label for label in (*LABELS, "unknown") if label in found.index or label in info.published_counts]
    return pd.DataFrame(
        {
            "label": order,
            "here": [int(found.get(label, 0)) for label in order],
            "published": pd.array([info.published_counts.get(label) for label in order], dtype="Int64"),
        }
    )


def place(name: str, source: Path, data: Path, *, link: bool = False, replace: bool = False) -> Path:
    """Bring a downloaded set to ``data/<name>``; an interruption or error leaves what was there.

    Args:
        source: the set as downloaded, in its source's layout.
        data: the folder of all sets.
        link: hard-link instead of copying; needs one file system.
        replace: take the place of an older copy, whose list of withdrawn patients is kept.

    Raises:
        DataError: the set is unknown or made by us, the folder is missing or laid out otherwise, there is a copy
            already, no room, or no way to link.
    """
    info = get(name).INFO
    target = data / name
    if name in PHANTOMS:
        raise DataError(f"{info.title} is made, not added: run `{info.link}`")
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: give the folder in which {info.title} was unpacked")
    if target.exists() and source.resolve() == target.resolve():
        raise DataError(f"{source} is {target} itself: give the folder of the download")
    if (target.exists() or target.is_symlink()) and not replace:
        raise DataError(f"{target} is there already: use --replace to put this copy in its place")
    if not any(isinstance(row, Row) for row in read_rows(name, source)):
        raise DataError(f"{source} holds no image of {info.title}: get the set again from {info.link}")
    data.mkdir(parents=True, exist_ok=True)
    _require_space(sum((source / file).stat().st_size for file in _files(source)), data, 1 if link else 2)
    incoming, old = data / f".{name}.incoming", data / f".{name}.old"
    for leftover in (incoming, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        for file in _files(source):
            (incoming / file).parent.mkdir(parents=True, exist_ok=True)
            _put((source / file).resolve(), incoming / file, link)
        if (target / WITHDRAWN).is_file():
            shutil.copyfile(target / WITHDRAWN, incoming / WITHDRAWN)
        if target.is_symlink():
            target.unlink()
        elif target.exists():
            os.replace(target, old)
        os.replace(incoming, target)
    finally:
        for leftover in (incoming, old):
            shutil.rmtree(leftover, ignore_errors=True)
    return target


def put_metadata(table: Path, folder: Path) -> None:
    """Put Cohen's metadata.csv into a set's folder.

    Raises:
        DataError: the file is missing or another table.
    """
    from chestflow.data.cohen_metadata import read_metadata

    if not table.is_file():
        raise DataError(f"{table} is not a file: give Cohen's metadata.csv")
    read_metadata(table)
    with atomic_path(folder / "metadata.csv") as temporary:
        shutil.copyfile(table, temporary)


def _put(source: Path, target: Path, link: bool) -> None:
    if not link:
        shutil.copyfile(source, target)  # without its permissions: a read-only original must not give a read-only copy
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise DataError("hard links do not reach there (another file system): use --copy") from None
        raise
