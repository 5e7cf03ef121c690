"""Where MLflow keeps runs and models, opened so that a problem is one clear line within seconds.

``MLFLOW_TRACKING_URI`` wins. Without it, metadata is one SQLite file, ``mlflow.db``, and artifacts lie in ``mlruns/``,
both in the repository root. DVC names that root to its stages (``DVC_ROOT``), also in its temporary experiment folders.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chestflow.errors import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: Unless the environment says otherwise: patience with a server in seconds and attempts (MLflow's own defaults wait for
#: minutes), and no progress bars in logs.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
PROBE_SECONDS = 5
SQLITE = "sqlite:///"


def _settle() -> None:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def root() -> Path:
    """The repository that owns the store: DVC's, also inside its temporary folders, else the current folder."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def uri() -> str:
    """The tracking URI."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{root() / 'mlflow.db'}"


def database(address: str) -> Path | None:
    """The file behind an SQLite URI; None for a server or another database."""
    return Path(address.removeprefix(SQLITE)).absolute() if address.startswith(SQLITE) else None


def artifact_root() -> str | None:
    """Where new experiments put artifacts: ``mlruns/`` beside our own database; None leaves it to the server.

    Without this MLflow takes ``mlruns`` below the current folder, which DVC deletes after an experiment.
    """
    return (root() / "mlruns").as_uri() if database(uri()) is not None else None


@contextmanager
def clear_errors(doing: str) -> Iterator[None]:
    """Turn what MLflow and its database raise into one :class:`TrackingError` that says what was being done."""
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except TrackingError:
        raise
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, requests.exceptions.RequestException) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrackingError(f"{doing} failed in the tracking store {shown()}: {first[:300]}") from None


def shown() -> str:
    """The tracking URI without a password, for messages."""
    address = uri()
    scheme, separator, rest = address.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _probe(address: str) -> None:
    """Raise unless a server answers; any HTTP status is an answer."""
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(
            f"the tracking server {shown()} does not answer ({reason}): start it, or correct or unset"
            " MLFLOW_TRACKING_URI"
        ) from None


def _check(file: Path) -> None:
    """Raise unless the file is a whole MLflow database; takes milliseconds and changes nothing."""
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=20)) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        raise TrackingError(
            f"the tracking database {file} cannot be read ({error}): put a backup (mlflow.db.backup-*) in its place,"
            " or move it away and run `chestflow tracking init`"
        ) from None
    if not {"alembic_version", "runs", "model_versions"} <= tables:
        raise TrackingError(
            f"{file} is no whole MLflow database: restore a backup, or move it away and run `chestflow tracking init`"
        )


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock beside the database: two first users at once would break it for good."""
    from filelock import FileLock, Timeout

    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{file}.lock", timeout=120):
            yield
    except Timeout:
        raise TrackingError(f"another process has held {file}.lock for two minutes: end it and start again") from None


def _mlflow(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run MLflow's own command line in a process of its own, so that nothing is cached in this one."""
    return subprocess.run([sys.executable, "-m", "mlflow", *arguments], capture_output=True, text=True)


def _create(file: Path) -> None:
    """Make the database under another name and rename it, so that a killed creation leaves nothing half-made."""
    temporary = file.with_name(f"{file.name}.new")
    temporary.unlink(missing_ok=True)
    done = _mlflow("db", "upgrade", f"{SQLITE}{temporary}")
    if done.returncode != 0 or not temporary.exists():
        temporary.unlink(missing_ok=True)
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TrackingError(f"the tracking database {file} cannot be made: {last[:300]}")
    os.replace(temporary, file)


def _revision(file: Path) -> str:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=20)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def _newest() -> str:
    """The revision of the installed MLflow's database, from its migrations."""
    import mlflow
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    return str(ScriptDirectory.from_config(config).get_current_head())


def _upgrade(file: Path) -> Path | None:
    """Bring the database to the installed MLflow's form, with a backup first; None where it already is."""
    if _revision(file) == _newest():
        return None
    backup = file.with_name(f"{file.name}.backup-{_revision(file)}")
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    done = _mlflow("db", "upgrade", f"{SQLITE}{file}")
    if done.returncode != 0:
        shutil.copy2(backup, file)
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TrackingError(
            f"{file} cannot be upgraded ({last[:200]}); it is as before: install the MLflow that made it"
        )
    return backup


def initialise() -> tuple[str, Path | None]:
    """Create or upgrade the database; safe to repeat and to run twice at once.

    Returns:
        The tracking URI, and the backup made before an upgrade or None.

    Raises:
        TrackingError: a damaged or foreign database, a server that does not answer.
    """
    _settle()
    address, backup = uri(), None
    file = database(address)
    if file is None:
        if address.startswith("http"):
            _probe(address)
        return address, None
    with locked(file):
        if not file.exists():
            _create(file)
        else:
            _check(file)
            backup = _upgrade(file)
    return address, backup


def connect() -> MlflowClient:
    """A client of the store, which exists and answers; also sets MLflow's own tracking URI.

    Raises:
        TrackingError: as :func:`initialise`; or the database is older than the installed MLflow.
    """
    _settle()
    address = uri()
    file = database(address)
    if file is not None:
        if not file.exists():
            initialise()
        _check(file)
        # MLflow itself would upgrade some older databases in passing, without a backup
        if _revision(file) != _newest():
            raise TrackingError(f"{shown()} is of another MLflow: run `chestflow tracking init`, which backs it up")
    elif address.startswith("http"):
        _probe(address)
    import logging

    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(address)
    client = mlflow.MlflowClient(address)
    with clear_errors("opening"):
        client.search_experiments(max_results=1)
    return client


def experiment(client: MlflowClient, name: str) -> str:
    """The id of an experiment, made with our artifact folder where it does not exist.

    Raises:
        TrackingError: it was deleted in MLflow, or the store refuses.
    """
    from mlflow.exceptions import MlflowException

    with clear_errors(f"opening experiment {name}"):
        found = client.get_experiment_by_name(name)
        if found is None:
            location = artifact_root()
            try:
                return str(client.create_experiment(name, f"{location}/{name}" if location else None))
            except MlflowException:
                found = client.get_experiment_by_name(name)  # another process made it in between
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise TrackingError(f"experiment {name} was deleted in MLflow: restore it there, or delete it for good")
    return str(found.experiment_id)
