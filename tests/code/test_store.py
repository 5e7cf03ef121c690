"""The MLflow store is made once and whole, and each problem with it is one clear line within seconds."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from chestflow.errors import TrackingError
from chestflow.tracking import server, store

REVISION = "SELECT version_num FROM alembic_version"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database, made by two processes at once."""
    root = tmp_path_factory.mktemp("store")
    environment = {**os.environ, "DVC_ROOT": str(root)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    code = "from chestflow.tracking import store; print(store.initialise()[0])"
    pair = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120)[0].strip() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert answers == [f"sqlite:///{root}/mlflow.db"] * 2
    return root / "mlflow.db"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_the_repository_of_dvc_wins_over_the_current_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "elsewhere").mkdir()
    monkeypatch.chdir(root / "elsewhere")
    assert store.uri() == f"sqlite:///{root}/mlflow.db"
    assert store.artifact_root() == (root / "mlruns").as_uri()
    monkeypatch.delenv("DVC_ROOT")
    assert store.uri() == f"sqlite:///{root}/elsewhere/mlflow.db"


def test_the_environment_wins_and_a_password_is_not_shown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@tracking.example.org")
    assert store.uri() == "https://me:secret@tracking.example.org"
    assert store.shown() == "https://tracking.example.org"
    assert store.artifact_root() is None


def test_two_first_users_at_once_make_one_whole_database(made: Path, root: Path) -> None:
    shutil.copy2(made, root / "mlflow.db")
    client = store.connect()
    number = store.experiment(client, "chestflow-x")
    assert store.experiment(client, "chestflow-x") == number
    place = client.get_experiment(number).artifact_location
    assert place == (root / "mlruns" / "chestflow-x").as_uri()


def test_a_damaged_database_is_named_and_left_alone(root: Path) -> None:
    file = root / "mlflow.db"
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be read .*backup"):
        store.connect()
    assert file.read_bytes() == b"not a database" * 100


def test_a_foreign_database_is_refused(root: Path) -> None:
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        connection.execute("CREATE TABLE other (x)")
        connection.commit()
    with pytest.raises(TrackingError, match="no whole MLflow database"):
        store.initialise()


def test_an_older_database_is_backed_up_before_its_upgrade(made: Path, root: Path) -> None:
    file = root / "mlflow.db"
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    _step_back(file, environment)
    with closing(sqlite3.connect(file)) as connection:
        earlier = connection.execute(REVISION).fetchone()
    with pytest.raises(TrackingError, match="another MLflow: run `chestflow tracking init`"):
        store.connect()
    _, backup = store.initialise()
    assert backup is not None
    found = []
    for path in (backup, file, made):
        with closing(sqlite3.connect(path)) as connection:
            found.append(connection.execute(REVISION).fetchone())
    assert found[0] == earlier
    assert found[1] == found[2] != earlier


def _step_back(file: Path, environment: dict[str, str]) -> None:
    """An MLflow database as an earlier release left it: its first twenty migrations."""
    code = (
        "import sys\n"
        "from alembic import command\n"
        "from mlflow.store.db.utils import _get_alembic_config, create_sqlalchemy_engine\n"
        "from mlflow.store.tracking.dbmodels.initial_models import Base\n"
        "engine = create_sqlalchemy_engine('sqlite:///' + sys.argv[1])\n"
        "Base.metadata.create_all(engine)\n"
        "config = _get_alembic_config('sqlite:///' + sys.argv[1])\n"
        "with engine.begin() as connection:\n"
        "    config.attributes['connection'] = connection\n"
        "    command.upgrade(config, '+20')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, env=environment, capture_output=True)


def test_a_server_that_is_not_there_is_said_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    start = time.perf_counter()
    with pytest.raises(TrackingError, match=rf"127\.0\.0\.1:{port} does not answer .*MLFLOW_TRACKING_URI"):
        store.connect()
    assert time.perf_counter() - start < 10


def test_a_port_in_use_is_named(root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TrackingError, match=f"port {port} is in use"):
            server.serve(port)
    server.require_free(port)


def test_the_server_has_one_worker_on_loopback(root: Path) -> None:
    line = " ".join(server.command("sqlite:////x/mlflow.db", 5001))
    assert "--host 127.0.0.1 --port 5001 --workers 1" in line


def _hold(path: str, ready: object) -> None:
    with store.locked(Path(path)):
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_the_lock_of_a_killed_process_is_free_again(root: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(root / "mlflow.db"), ready))
    holder.start()
    assert ready.wait(30)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    start = time.perf_counter()
    with store.locked(root / "mlflow.db"):
        assert time.perf_counter() - start < 10
