"""Reading ahead and making batches."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from chestflow.training.loader import Reader, ahead
from tests import toy

CPU = torch.device("cpu")


def reading_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "read ahead"]


def test_ahead_is_map_and_really_ahead() -> None:
    made: list[int] = []

    def read(x: int) -> int:
        made.append(x)
        return x * x

    stream = ahead(read, range(50), depth=3)
    assert next(stream) == 0
    time.sleep(0.2)
    assert 2 <= len(made) <= 6
    assert list(stream) == [x * x for x in range(1, 50)]
    assert not reading_threads()


def test_an_error_while_reading_is_raised_where_the_batch_is_wanted() -> None:
    def read(x: int) -> int:
        if x == 2:
            raise OSError("the file is gone")
        return x

    stream = ahead(read, range(9))
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        next(stream)
    assert not reading_threads()


def test_leaving_early_ends_the_thread() -> None:
    stream = ahead(lambda x: x, iter(range(10**9)))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not reading_threads()


@pytest.mark.parametrize("shape", [(12, 10), (6, 8, 8)])
def test_a_batch_holds_the_packs_values(shape: tuple[int, ...]) -> None:
    pack, target = toy.make_pack(8, shape)
    table = toy.table(range(8), target)
    table.loc[1, "ratio"] = np.nan
    (batch,) = Reader(pack, table, CPU).batches([[3, 1, 3]])
    assert batch.image.shape == (3, 1, *shape)
    assert batch.image.dtype == torch.float32
    assert torch.equal(batch.image[:, 0], torch.from_numpy(pack.data[[3, 1, 3]]).float())
    assert batch.target.tolist() == [1, 1, 1]
    assert batch.rows.tolist() == [3, 1, 3]
    assert torch.isnan(batch.ratio).tolist() == [False, True, False]
    assert batch.lung is not None
    assert batch.infection is not None
    assert torch.equal(batch.lung[:, 0], torch.from_numpy(pack.masks[[3, 1, 3]] & 1).float())
    assert torch.equal(batch.infection[:, 0], torch.from_numpy((pack.masks[[3, 1, 3]] >> 1) & 1).float())


def test_unknown_masks_are_marked_and_change_nothing() -> None:
    pack, target = toy.make_pack(6)
    pack.index.loc[2, ["has_lung", "has_infection"]] = False
    pack.masks[2] = 0
    (batch,) = Reader(pack, toy.table(range(6), target), CPU).batches([[2, 4]])
    assert batch.lung is not None
    assert batch.infection is not None
    assert bool((batch.lung[0] == 1).all())
    assert 0 < float(batch.lung[1].mean()) < 1
    assert batch.infection[0].sum() == 0
    assert batch.has_infection.tolist() == [False, True]


def test_a_pack_without_masks_gives_none() -> None:
    pack, target = toy.make_pack(6)
    pack.index[["has_lung", "has_infection"]] = False
    pack.has_masks = False
    (batch,) = Reader(pack, toy.table(range(6), target), CPU).batches([[0, 1]])
    assert batch.lung is None
    assert batch.infection is None


def test_rows_need_not_be_the_tables_positions() -> None:
    pack, target = toy.make_pack(10)
    table = toy.table(np.array([7, 2, 9]), target)
    (batch,) = Reader(pack, table, CPU).batches([[2, 0]])
    assert batch.rows.tolist() == [9, 7]
