"""Real thin-slice series through ingest, segmentation and a served ensemble, as any other volume goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestflow.config import Segment
from chestflow.data.groups import group_images
from chestflow.data.ingest import ingest
from chestflow.imaging.read import read_volume
from chestflow.segmentation import infection, places, slice_network
from chestflow.segmentation.infection import InfectionSegmenter, Segmenter
from chestflow.segmentation.lungs import segment_ct
from chestflow.segmentation.run import segment
from chestflow.serving.answer import Predictor
from tests.model import bundles

RULES = Segment()


@pytest.fixture(scope="module")
def segmenter() -> InfectionSegmenter:
    """Small and untrained: it marks something, and the same whenever it is asked."""
    network = slice_network.build(slice_network.Shape("resnet18", 4, 64), seed=3)
    return InfectionSegmenter({"ct_volume": Segmenter(network, 0.5, (-1350.0, 150.0))})


@pytest.fixture(scope="module")
def manifest(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    if not (realdata / "covid-ct-md").is_dir():
        pytest.skip("covid-ct-md is not among the real sets here")
    folder = tmp_path_factory.mktemp("covid_ct_md")
    ingest("covid_ct_md", realdata / "covid-ct-md", folder, id_key="key", workers=1)
    return pd.read_parquet(folder / "manifest.parquet")


@pytest.fixture(scope="module")
def out(manifest: pd.DataFrame, segmenter: InfectionSegmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage ``segment`` leaves of the three patients."""
    folder = tmp_path_factory.mktemp("out")
    splits = pd.DataFrame({"cohort": [], "fold": [], "image_id": [], "group_id": [], "role": []})
    groups = group_images(manifest).table
    segment("ct_volume", manifest, splits, groups, RULES, folder, seed=1, threads=1, workers=1, infection=segmenter)
    return folder


@pytest.mark.slow
def test_segment_finds_lungs_and_marks_infection(manifest: pd.DataFrame, out: Path) -> None:
    found = places.ratios(out, "ct_volume").set_index("image_id")
    assert set(found.index) == set(manifest["image_id"])
    assert (found["infection_from"] == "network").all()
    assert found["ratio"].between(0, 1, inclusive="neither").all()
    for row in manifest.itertuples():
        volume = read_volume(Path(row.path))
        lungs = segment_ct(
            volume.hu, volume.spacing_mm, RULES.ct_lung_threshold_hu, RULES.ct_closing_mm, RULES.ct_convex_wall
        )
        millilitres = lungs.sum() * np.prod(volume.spacing_mm) / 1000
        assert 1500 < millilitres < 9000
        assert found.loc[row.image_id, "lung_ml"] >= millilitres - 1e-6  # what is marked outside counts as lung too


@pytest.mark.slow
def test_a_served_ensemble_answers_with_the_ratio_that_segment_measured(
    manifest: pd.DataFrame, out: Path, segmenter: InfectionSegmenter, tmp_path: Path
) -> None:
    """The model's networks are toys, to which a person is unlike their training; its segmentation is the stage's."""
    rules = {name: getattr(RULES, name) for name in ("ct_lung_threshold_hu", "ct_closing_mm", "ct_convex_wall")}
    bundles.write(tmp_path / "model", "pair", segmentation=rules)
    infection.save(segmenter, tmp_path / "model" / "infection")
    predictor = Predictor(tmp_path / "model", "toy")
    measured = places.ratios(out, "ct_volume").set_index("image_id")["ratio"]
    for row in manifest.itertuples():
        answer = predictor.answer(Path(row.path), name="series")
        assert (answer.status, answer.reason) in {("answered", None), ("abstained", "unlike_training"),
                                                  ("abstained", "lung_area")}  # fmt: skip
        assert answer.ratio_from == "network"
        assert float(answer.ratio) == pytest.approx(float(measured[row.image_id]), abs=1e-6)
        assert answer.unusual is not None
