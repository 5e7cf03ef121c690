"""SIGTERM as an exception, so that a stage asked to stop closes its run and leaves nothing half-written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(SystemExit):
    """The process was asked to stop; it ends with exit code 143, as an unhandled SIGTERM would."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def _stop(signum: int, frame: FrameType | None) -> None:
    # A second SIGTERM must not break into the closing of files and runs.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Raise :class:`Terminated` in the main thread on SIGTERM while the block runs. Elsewhere it changes nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except Terminated:
        raise  # stay deaf to further signals until the process has ended
    except BaseException:
        signal.signal(signal.SIGTERM, before)
        raise
    else:
        signal.signal(signal.SIGTERM, before)
