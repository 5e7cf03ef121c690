"""The ordered map: order, errors, one process for little work, a bounded queue, lost workers."""

import os
from functools import partial

import pytest

from chestflow.errors import DataError
from chestflow.parallel import WORTH_A_POOL, WorkerLost, cores, ordered_map

MANY = list(range(WORTH_A_POOL + 20))


def square(value: int) -> int:
    return value * value


def process(value: int) -> int:
    return os.getpid()


def fail_at(value: int, bad: int) -> int:
    if value == bad:
        raise DataError(f"item {value} is broken")
    return value


def vanish(value: int) -> int:
    os._exit(9)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    assert list(ordered_map(square, MANY, workers, chunk=3)) == [value * value for value in MANY]


def test_many_items_go_to_other_processes_and_few_stay_here() -> None:
    assert os.getpid() not in set(ordered_map(process, MANY, 2))
    assert set(ordered_map(process, MANY[:3], 2)) == {os.getpid()}
    assert list(ordered_map(process, [], 2)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_arrives_as_it_was_raised(workers: int) -> None:
    with pytest.raises(DataError, match="item 30 is broken"):
        list(ordered_map(partial(fail_at, bad=30), MANY, workers))


def test_a_killed_worker_is_one_clear_line() -> None:
    with pytest.raises(WorkerLost, match="lack of memory"):
        list(ordered_map(vanish, MANY, 2))


def test_there_is_at_least_one_core() -> None:
    assert cores() >= 1
