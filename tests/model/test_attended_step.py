"""Lambda means the same however a step is split: over micro-batches, and over processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.model.attended_step import attended_in_each, one_of_two, step
from tests.model.test_distributed import free_port
from tests.model.test_resume import CONTEXT


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, Tensor], dict[str, float]]:
    """The step in one piece."""
    return step(1)


def assert_same_step(
    one: tuple[dict[str, Tensor], dict[str, float]], other: tuple[dict[str, Tensor], dict[str, float]]
) -> None:
    assert one[0].keys() == other[0].keys()
    for name, gradient in one[0].items():
        assert float((other[0][name] - gradient).norm()) <= 1e-3 * float(gradient.norm()), name  # sums are rounded
    assert one[1].keys() == other[1].keys()
    assert other[1] == pytest.approx(one[1], rel=1e-5)


@pytest.mark.parametrize("accumulate", [2, 3, 7])
def test_micro_batches_make_the_step_of_the_batch(
    accumulate: int, whole: tuple[dict[str, Tensor], dict[str, float]]
) -> None:
    assert len(set(attended_in_each(accumulate, 0, 1))) > 1  # they differ in how many samples L_ex takes
    assert_same_step(whole, step(accumulate))


def test_what_is_logged_is_of_the_step(whole: tuple[dict[str, Tensor], dict[str, float]]) -> None:
    _, logged = whole
    assert logged["covid_without_infection"] == 2
    assert logged["loss"] == pytest.approx(logged["classification"] + 2.0 * logged["attention"], rel=1e-5)
    assert step(7, lam=0.0)[1].keys() == {"loss", "classification"}


def test_the_attention_matters_here(whole: tuple[dict[str, Tensor], dict[str, float]]) -> None:
    """Were lambda another one, the comparison would see it."""
    name = "backbone.layer4.0.conv2.weight"
    less, full = step(1, lam=1.0)[0][name], whole[0][name]
    assert float((full - less).norm()) > 0.1 * float(full.norm())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_processes_make_the_step_of_one(
    accumulate: int, tmp_path: Path, whole: tuple[dict[str, Tensor], dict[str, float]]
) -> None:
    port = free_port()
    pair = [CONTEXT.Process(target=one_of_two, args=(tmp_path, accumulate, rank, port)) for rank in (0, 1)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(120)
    assert [p.exitcode for p in pair] == [0, 0]
    logged = {name: float(value) for name, value in load_file(tmp_path / "logged.safetensors").items()}
    assert_same_step(whole, (load_file(tmp_path / "gradients.safetensors"), logged))
