"""Finding model versions: by name and alias or number, by the run that made them; and fetching their files."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestflow.errors import TrackingError
from chestflow.files import read_json
from chestflow.serving import bundle as bundles
from chestflow.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "chestflow-"
BUNDLE = "artifacts/bundle"
CANDIDATE = "candidate"


@dataclass(frozen=True)
class Version:
    """A registered model version."""

    name: str
    number: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    run_id: str

    @property
    def label(self) -> str:
        """As answers and tables show it."""
        return f"{self.name} v{self.number}"


def model_name(name: str) -> str:
    """The registered model of a run or an ensemble."""
    return name if name.startswith(PREFIX) else f"{PREFIX}{name}"


def _not_found(error: Exception) -> bool:
    return getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"


def names(client: MlflowClient) -> list[str]:
    """Every registered model of ours."""
    with store.clear_errors("listing models"):
        return sorted(m.name for m in client.search_registered_models(max_results=1000) if m.name.startswith(PREFIX))


def _version(found: Any, aliases: dict[str, str]) -> Version:
    number = int(found.version)
    mine = tuple(sorted(alias for alias, version in aliases.items() if int(version) == number))
    return Version(str(found.name), number, mine, dict(found.tags), str(found.run_id or ""))


def aliases_of(client: MlflowClient, name: str) -> dict[str, str]:
    """alias -> version of a model.

    Raises:
        TrackingError: there is no such model; the message lists those that exist.
    """
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if not _not_found(error):
            with store.clear_errors(f"looking up model {name}"):
                raise
    known = ", ".join(names(client)) or "none yet: run `dvc repro`, or `chestflow register NAME`"
    raise TrackingError(f"model {name} is unknown; registered are: {known}")


def versions(client: MlflowClient, name: str) -> list[Version]:
    """All versions of a model, the newest first; empty where there is no such model."""
    with store.clear_errors(f"looking up model {name}"):
        found = client.search_model_versions(f"name = '{name}'", max_results=1000)
        if not found:
            return []
        aliases = dict(client.get_registered_model(name).aliases)
    return sorted((_version(one, aliases) for one in found), key=lambda version: -version.number)


def resolve(client: MlflowClient, reference: str) -> Version:
    """A version by ``NAME@alias``, ``NAME/number``, or ``NAME`` alone for its candidate.

    Raises:
        TrackingError: the model, alias or version is unknown; the message says what exists.
    """
    match = re.fullmatch(r"(?P<name>[A-Za-z0-9_.-]+)(?:@(?P<alias>[A-Za-z0-9_-]+)|/v?(?P<number>\d+))?", reference)
    if match is None:
        raise TrackingError(f"{reference!r} names no model: write NAME@staging, NAME/3 or NAME")
    name = model_name(match["name"])
    aliases = aliases_of(client, name)
    if match["number"] is not None:
        return by_number(client, name, int(match["number"]))
    alias = match["alias"] or CANDIDATE
    if alias not in aliases:
        have = ", ".join(f"{a} (v{v})" for a, v in sorted(aliases.items())) or "none"
        promote = f": `chestflow promote {name} --to {alias}` sets it" if alias in ("staging", "production") else ""
        raise TrackingError(f"model {name} has no alias {alias}; it has {have}{promote}")
    return by_number(client, name, int(aliases[alias]))


def by_number(client: MlflowClient, name: str, number: int) -> Version:
    """One version.

    Raises:
        TrackingError: there is none; the message lists those that exist.
    """
    found = versions(client, name)
    for version in found:
        if version.number == number:
            return version
    have = ", ".join(f"v{version.number}" for version in found) or "none"
    raise TrackingError(f"model {name} has no version {number}; it has {have}")


def versions_of_run(run_id: str) -> list[str]:
    """``name vN`` of the model versions that hold a run's network."""
    client = store.connect()
    found = [version for name in names(client) for version in versions(client, name)]
    return sorted(v.label for v in found if run_id == v.run_id or run_id in v.tags.get("run_ids", "").split(","))


@contextmanager
def files(version: Version, part: str = "") -> Iterator[Path]:
    """The folder of a version's bundle, or one of its files, for as long as the block runs.

    Raises:
        TrackingError: the registry knows the version, but its files are gone.
    """
    import mlflow.artifacts

    place = f"models:/{version.name}/{version.number}/{BUNDLE}" + (f"/{part}" if part else "")
    with tempfile.TemporaryDirectory(prefix="chestflow-") as folder:
        try:
            with store.clear_errors(f"fetching {version.label}"):
                path = Path(mlflow.artifacts.download_artifacts(place, dst_path=folder))
        except (OSError, TrackingError) as error:
            raise TrackingError(
                f"the files of {version.label} cannot be fetched ({error}): a moved checkout needs the server form"
                " (docs/mlflow.md); `chestflow register` makes the version anew"
            ) from None
        yield path


def evidence(version: Version) -> tuple[dict[str, Any], bundles.Bundle, str]:
    """A version's own evaluation, its facts, and the evaluation's sha256.

    Raises:
        TrackingError: the files were changed after they were registered.
    """
    from chestflow.files import sha256_file

    with files(version, bundles.EVIDENCE) as evaluated, files(version, bundles.FILE) as described:
        folder = described.parent
        if evaluated.parent != folder:
            shutil.copy2(evaluated, folder / bundles.EVIDENCE)
        if version.tags.get("seal") != bundles.seal(folder):
            raise TrackingError(
                f"the evidence of {version.label} is not what was registered and does not count:"
                " `chestflow register` makes the version anew"
            )
        found, digest = read_json(folder / bundles.EVIDENCE), sha256_file(folder / bundles.EVIDENCE)
        return found, bundles.read(folder), digest
