"""An ordered map over processes with a bounded queue: every core works, memory does not grow with the number of items.

Workers are spawned, never forked: a fork copies the locks of running threads (OpenCV, arrow, torch) and can hang. A
script that uses this needs the usual ``if __name__ == "__main__"`` guard.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from chestflow.errors import ChestflowError

T = TypeVar("T")
R = TypeVar("R")

#: below this many items the seconds that processes need to start are not earned back
WORTH_A_POOL = 24


class WorkerLost(ChestflowError):
    """A worker process was killed, most often for lack of memory."""


def cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _single_threaded() -> None:
    """One thread per worker: with one worker per core, more threads only get in each other's way."""
    import cv2
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships none

    cv2.setNumThreads(1)
    threadpool_limits(1)


def _run_chunk(function: Callable[[T], R], chunk: Sequence[T]) -> list[R]:
    return [function(item) for item in chunk]


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def ordered_map(
    function: Callable[[T], R], items: Sequence[T], workers: int | None = None, chunk: int = 8
) -> Iterator[R]:
    """Yield ``function(item)`` in the order of ``items``, computed by ``workers`` processes.

    Args:
        function: picklable (a module's function, or a :func:`functools.partial` of one).
        items: picklable.
        workers: processes; None takes one per core. One worker, or few items, runs in this process.
        chunk: items sent at a time; larger costs less traffic, smaller spreads uneven work better.

    Raises:
        WorkerLost: a worker was killed.
        Exception: whatever ``function`` raises, for the first item in order that fails; the rest is cancelled.
    """
    workers = cores() if workers is None else workers
    if workers <= 1 or len(items) < WORTH_A_POOL:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_single_threaded)
    waiting: deque[Future[Any]] = deque()
    chunks = _chunks(items, chunk)
    try:
        for part in islice(chunks, 4 * workers):
            waiting.append(pool.submit(_run_chunk, function, part))
        while waiting:
            results = waiting.popleft().result()
            for part in islice(chunks, 1):
                waiting.append(pool.submit(_run_chunk, function, part))
            yield from results
    except BrokenProcessPool:
        raise WorkerLost("a worker process was killed, most often for lack of memory: start again") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
