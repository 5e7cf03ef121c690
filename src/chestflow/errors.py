"""Errors that a user sees: one clear line that says what is wrong and what to do, never a stack trace."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class ChestflowError(Exception):
    """Base of every error meant for a user. The message is one line: what is wrong, then what to do."""

    exit_code = 2


class ConfigError(ChestflowError):
    """params.yaml, a profile or a command's options ask for something impossible."""


class DataError(ChestflowError):
    """A data folder, image, mask, split or pack is missing or not as expected."""


class ValidationFailed(ChestflowError):
    """A critical data rule failed; the table was printed."""

    exit_code = 3


class TrainingError(ChestflowError):
    """Training cannot go on: a non-finite loss, a corrupted checkpoint, weights that do not fit."""


class TrackingError(ChestflowError):
    """The MLflow store or server cannot be used, or a model, version or alias is unknown."""


class GateRefused(ChestflowError):
    """A promotion was refused by its gates; the table was printed."""

    exit_code = 4


@contextmanager
def naming_image(image_id: str, doing: str) -> Iterator[None]:
    """Let a failure with one image among thousands name it, by its identity and never by its path."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"image {image_id}: its file is gone: put it back, or run `dvc repro` from ingest") from None
    except ChestflowError as error:
        raise DataError(f"image {image_id} cannot be {doing}: {error}") from None


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a :class:`ChestflowError`, a full disk or a refused path into one line on stderr and an exit code."""
    try:
        yield
    except ChestflowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        advice = {
            errno.ENOSPC: "the disk is full: free some space and start again, earlier results are whole",
            errno.EDQUOT: "the disk quota is used up: free some space and start again, earlier results are whole",
            errno.EACCES: "permission denied: make the folder writable and start again",
            errno.EROFS: "the file system is read-only: choose a writable folder",
        }.get(error.errno or 0)
        if advice is None:
            raise
        print(f"error: {advice}{where}", file=sys.stderr)
        sys.exit(2)
