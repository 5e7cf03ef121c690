"""A served model sees the part of a picture that it was trained on, and does not answer where that part is unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chestflow.data import recipes
from chestflow.serving.answer import Predictor
from chestflow.serving.bundle import Bundle
from tests.model import bundles, toy_models


def predictor(folder: Path, keep: str) -> Predictor:
    """The toy X-ray model, which has no lung segmenter, as if trained with another ``keep``."""
    plain: Bundle = bundles.write(folder, "plain")
    bundles.write(folder, "plain", recipe={**plain.recipe, "keep": keep})
    return Predictor(folder, "chestflow-plain v1")


@pytest.mark.parametrize("keep", ["lungs", "outside_lungs", "outside_box"])
def test_without_lungs_it_abstains(tmp_path: Path, keep: str) -> None:
    picture = toy_models.write_xray(tmp_path / "x.png", toy_models.xray(1, True))
    answer = predictor(tmp_path / "model", keep).answer(picture)
    assert (answer.status, answer.reason, answer.probability) == ("abstained", "lung_area", None)
    assert answer.detail is not None
    assert "no lungs can be found" in answer.detail


def test_only_the_border_reaches_a_network_of_the_border(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that differ inside give one answer, and what the network is given is what a pack would hold."""
    given: list[np.ndarray] = []
    apply = recipes.apply

    def spy(*values: object) -> tuple:
        found = apply(*values)  # type: ignore[arg-type]
        given.append(found[0])
        return found

    monkeypatch.setattr(recipes, "apply", spy)
    model = predictor(tmp_path / "model", "border")
    first = toy_models.xray(1, True)
    second = first.copy()
    second[16:80, 16:80] = 255 - second[16:80, 16:80]
    answers = [
        model.answer(toy_models.write_xray(tmp_path / f"{name}.png", pixels))
        for name, pixels in (("a", first), ("b", second))
    ]
    assert np.array_equal(given[0], given[1])
    assert not given[0][7:57, 7:57].any()
    assert given[0].any()
    assert answers[0].unusual == answers[1].unusual
    assert answers[0].probability == answers[1].probability
