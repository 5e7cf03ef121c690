"""MLflow's pages on loopback, with two processes instead of MLflow's default twelve."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

from chestflow.errors import TrackingError
from chestflow.tracking import store

HOST = "127.0.0.1"


def require_free(port: int) -> None:
    """Raise :class:`TrackingError` when something already listens on a port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError:
            raise TrackingError(f"port {port} may not be used by this account: choose one above 1023") from None
        except OSError:
            raise TrackingError(
                f"port {port} is in use: MLflow may already be open at http://{HOST}:{port}, or choose another, "
                f"`make ui PORT={port + 1 if port < 65535 else 5000}`"
            ) from None


def command(address: str, port: int) -> list[str]:
    """MLflow's server over a store, with artifacts of new experiments served from ``mlruns/``."""
    found = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address, "--host", HOST]
    found += ["--port", str(port), "--workers", "1"]
    return [*found, "--artifacts-destination", str(store.root() / "mlruns")]


def serve(port: int) -> int:
    """Run the server until it is stopped; returns its exit code.

    Raises:
        TrackingError: the port is in use, the store cannot be used, or it is itself a server.
    """
    if store.uri().startswith(("http://", "https://")):
        raise TrackingError(f"MLFLOW_TRACKING_URI is a server, {store.shown()}: open it in a browser")
    require_free(port)
    address, _ = store.initialise()
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    print(f"MLflow: http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
    process = subprocess.Popen(command(address, port), env=environment, cwd=store.root())

    def end(signum: int, frame: object) -> None:
        process.terminate()

    before = signal.signal(signal.SIGTERM, end)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait(timeout=30)
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
