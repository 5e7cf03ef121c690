"""Batches straight from a pack: a thread reads the next ones while the network works on this one.

A thread is enough, because reading is copying from a memory map. It does no arithmetic in torch, whose thread count is
pinned for the main thread alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, Full, Queue
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from chestflow.training.phases import Batch

LUNG_BIT, INFECTION_BIT = 1, 2
_DEPTH = 2
T = TypeVar("T")
U = TypeVar("U")


class PackLike(Protocol):
    """What training needs of a pack (:class:`chestflow.data.packs.Pack`)."""

    index: pd.DataFrame
    data: Any

    def gather(self, rows: Any, /) -> tuple[NDArray, NDArray[np.uint8] | None]: ...


Raw = tuple[Tensor, Tensor | None, pd.DataFrame]


class Reader:
    """Makes batches of a pack's rows.

    Args:
        pack: the pack.
        table: columns row, target (-1 where withheld) and ratio.
        device: where batches go.
    """

    def __init__(self, pack: PackLike, table: pd.DataFrame, device: torch.device) -> None:
        known = pack.index.set_index("row")[["has_lung", "has_infection"]].loc[table["row"].to_numpy()]
        self.pack, self.device = pack, device
        self.table = table.reset_index(drop=True).assign(
            has_lung=known["has_lung"].to_numpy(bool), has_infection=known["has_infection"].to_numpy(bool)
        )
        # Decided for the pack and not for each batch, so that a sample's input does not depend on its neighbours.
        self.any_lung = bool(pack.index["has_lung"].any())
        self.any_infection = bool(pack.index["has_infection"].any())

    def read(self, positions: Sequence[int]) -> Raw:
        """Copy the samples at these positions of the table out of the pack; runs in the thread."""
        chosen = self.table.iloc[list(positions)]
        data, masks = self.pack.gather(chosen["row"].to_numpy())
        image, bits = torch.from_numpy(data), None if masks is None else torch.from_numpy(masks)
        if self.device.type == "cuda":
            image, bits = image.pin_memory(), None if bits is None else bits.pin_memory()
        return image, bits, chosen

    def finish(self, raw: Raw) -> Batch:
        """Bring what was read to the device, as a :class:`~chestflow.training.phases.Batch`.

        A sample without a lung mask gets one that is 1 everywhere (masking by it changes nothing), one without an
        infection mask gets zeros and ``has_infection`` false. Where no image of the pack has a mask of a kind, it is
        None.
        """
        image, bits, chosen = raw
        bits = None if bits is None else bits.to(self.device, non_blocking=True)[:, None]
        has_lung = self._tensor(chosen["has_lung"], bool)
        lung = infection = None
        if bits is not None and self.any_lung:
            unknown = ~has_lung.view(-1, *[1] * (bits.ndim - 1))
            lung = (((bits & LUNG_BIT) > 0) | unknown).float()
        if bits is not None and self.any_infection:
            # Bits of an image without an infection mask are boxes, which hold more than the infection.
            masked = self._tensor(chosen["has_infection"], bool).view(-1, *[1] * (bits.ndim - 1))
            infection = (((bits & INFECTION_BIT) > 0) & masked).float()
        return Batch(
            image=image.to(self.device, non_blocking=True)[:, None].float(),
            target=self._tensor(chosen["target"], np.int64),
            lung=lung,
            infection=infection,
            has_infection=self._tensor(chosen["has_infection"], bool),
            ratio=self._tensor(chosen["ratio"], np.float32),
            rows=self._tensor(chosen["row"], np.int64),
        )

    def _tensor(self, column: pd.Series, dtype: Any) -> Tensor:
        values = column.to_numpy(dtype, na_value=np.nan) if dtype is np.float32 else column.to_numpy(dtype)
        return torch.tensor(values, device=self.device)

    def batches(self, order: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Batches of these positions in this order, read ahead."""
        for raw in self.raws(order):
            yield self.finish(raw)

    def raws(self, order: Iterable[Sequence[int]], depth: int = _DEPTH) -> Iterator[Raw]:
        """The same before they are brought to the device, ``depth`` of them read ahead."""
        return ahead(self.read, order, depth)


def ahead(read: Callable[[T], U], items: Iterable[T], depth: int = _DEPTH) -> Iterator[U]:
    """``map(read, items)`` with up to ``depth`` results made in advance by a thread; its errors are raised here."""
    results: Queue[tuple[U | None, BaseException | None] | None] = Queue(depth)
    stopped = threading.Event()

    def put(result: tuple[U | None, BaseException | None] | None) -> None:
        while not stopped.is_set():
            try:
                return results.put(result, timeout=0.1)
            except Full:
                continue

    def work() -> None:
        try:
            for item in items:
                if stopped.is_set():
                    return
                put((read(item), None))
            put(None)
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, name="read ahead", daemon=True)
    thread.start()
    try:
        while (result := results.get()) is not None:
            value, error = result
            if error is not None:
                raise error
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
        while thread.is_alive():
            try:
                results.get_nowait()
            except Empty:
                thread.join(0.05)
