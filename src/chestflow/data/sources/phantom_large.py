"""The large phantom cohort, as `chestflow data phantom --large` writes it: laid out as the embedded one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from chestflow.data.sources import phantom
from chestflow.data.sources.base import Reject, Row

INFO = replace(
    phantom.INFO,
    name="phantom_large",
    title="the large phantom cohort (synthetic)",
    link="chestflow data phantom --large",
)

TABLES = phantom.TABLES


def rows(root: Path) -> Iterator[Row | Reject]:
    """Rows of images.csv; see :func:`chestflow.data.sources.phantom.rows`."""
    yield from phantom.rows(root)
