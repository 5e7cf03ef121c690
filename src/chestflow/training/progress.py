"""Progress of a training: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO

QUIET_SECONDS = 60.0


def say(line: str) -> None:
    """A line about the training on stderr, by the first process alone."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """Told of every step and epoch of one phase.

    Args:
        epochs_left: epochs that remain at most; the time left is an upper bound, since a phase may stop early.
        stream: where to write; None is stderr. A bar appears on a terminal, if ``rich`` is installed.
        silent: write nothing (all processes but the first).
    """

    def __init__(self, epochs_left: int, stream: TextIO | None = None, silent: bool = False) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.epochs_left, self.silent = epochs_left, silent
        self.bar: Any = None

    def begin(self, label: str, steps: int, done: int = 0) -> None:
        """An epoch of ``steps`` starts, of which ``done`` were done before an interruption."""
        self.label, self.steps, self.step_now, self.first = label, steps, done, done
        self.samples = 0
        self.start = self.last_line = time.monotonic()
        if not self.silent and self.stream.isatty():
            self.bar = _rich_bar(self.stream, label, steps, done)

    def _pace(self) -> str:
        spent = max(time.monotonic() - self.start, 1e-9)
        share = (self.step_now - self.first) / max(self.steps, 1)
        left = spent / share * (self.epochs_left - self.step_now / max(self.steps, 1)) if share else 0.0
        return f"{self.samples / spent:.1f} images/s, at most {_clock(max(left, 0.0))} left"

    def step(self, samples: int) -> None:
        """A step over ``samples`` is done."""
        self.step_now += 1
        self.samples += samples
        if self.bar is not None:
            self.bar.update(0, completed=self.step_now, pace=self._pace())
        elif not self.silent and time.monotonic() - self.last_line > QUIET_SECONDS:
            self.last_line = time.monotonic()
            print(f"{self.label}  step {self.step_now}/{self.steps}  {self._pace()}", file=self.stream, flush=True)

    def end(self, line: str) -> None:
        """The epoch is over; ``line`` says what came out."""
        pace = self._pace()
        self.close()
        self.epochs_left -= 1
        if not self.silent:
            print(f"{line}  {pace}", file=self.stream, flush=True)

    def close(self) -> None:
        """Give the terminal back."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _rich_bar(stream: TextIO, label: str, steps: int, done: int) -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress
    except ImportError:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    bar = RichProgress(*columns, console=Console(file=stream), transient=True)
    bar.add_task(label, total=steps, completed=done, pace="")
    bar.start()
    return bar
