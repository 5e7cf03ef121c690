"""Each CT method goes the whole way on drawn lungs: trained, saved, bundled, and asked about a raw file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from chestflow.config import Params
from chestflow.evaluation.calibration import operating_points
from chestflow.methods import registry
from chestflow.segmentation.lungs import segment_ct
from chestflow.serving import bundle, inputs
from chestflow.serving.answer import Answer, Predictor
from chestflow.tracking.packing import describe, studies
from chestflow.training.run import train_run
from tests.model import ct_toys, toy_models

KNOWLEDGE = {"backbone": "squeezenet1_1", "channels": 1, "normalise": "imagenet", "global_branch": "run", "epochs": 1}
DUAL = {"depth": 10, "width": 4, "epochs": 1, "lr": 0.01}
#: The smallest form of each method that is still itself: what it is called here, its method and its config.
VOLUMES: dict[str, tuple[str, dict[str, Any]]] = {
    "dual_sampling": ("dual_sampling", DUAL),
    "without_attention": ("dual_sampling", {**DUAL, "attention": False}),
    "infection_ratio": ("infection_ratio", {}),
}
SLICES: dict[str, tuple[str, dict[str, Any]]] = {
    "baselines": ("baselines", {"network": "squeezenet1_1", "channels": 1, "epochs": 1}),
    "decaps": ("decaps", {"backbone": "resnet18", "channels": 1, "width": 16, "capsules": [4, 4, 4], "epochs": 1}),
    "fusion": ("multi_knowledge", {**KNOWLEDGE, "answers": "fusion"}),
    "infected": ("multi_knowledge", {**KNOWLEDGE, "answers": "infected"}),
    "infection_ratio": ("infection_ratio", {}),
    "saeedi": ("saeedi", {"backbone": "squeezenet1_1", "channels": 1, "epochs": 2}),
}
#: Networks of slices that look at the infection itself.
LOOKS = {"fusion", "infected"}
#: Seed of a drawn patient of the train role with COVID-19.
ASKED = 1


def test_no_ct_method_is_left_out() -> None:
    for table, modality in ((VOLUMES, "ct_volume"), (SLICES, "ct_slice")):
        known = {name: registry.get(name).modalities for name in registry.names()}
        alone = {name for name, reads in known.items() if modality in reads and "cxr" not in reads}
        assert (
            alone <= {method for method, _ in table.values()} <= {n for n, reads in known.items() if modality in reads}
        )


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages before training leave, and a trained plain network ``seen`` of slices."""
    root = tmp_path_factory.mktemp("ct")
    ct_toys.write_outs(root / "out")
    _train(_params("baselines", SLICES), "seen", root / "out")
    return root / "out"


def _params(name: str, table: dict[str, tuple[str, dict[str, Any]]]) -> Params:
    task, recipe = ("slice_covid", "flat") if table is SLICES else ("covid_vs_cap", "cube")

    def run(called: str) -> dict[str, Any]:
        method, config = table[called]
        return {"method": method, "task": task, "recipe": recipe, "config": {**config, "batch_size": 14}}

    if table is not SLICES:
        return ct_toys.params({"asked": run(name)})
    uses = {"global": "seen"} if SLICES[name][0] == "multi_knowledge" else {}
    return ct_toys.params({"seen": run("baselines"), "asked": {**run(name), "uses": uses}})


def _train(params: Params, run: str, out: Path) -> dict[str, Any]:
    threads = torch.get_num_threads()
    description = train_run(params, run, 0, out, out.parent / ".checkpoints")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    return description


def _predictor(params: Params, outs: Path, root: Path, *, segmenter: np.ndarray | None = None) -> Predictor:
    """Train the run, bundle it and leave nothing else behind."""
    out = root / "out"
    shutil.copytree(outs, out)
    description = _train(params, "asked", out)
    assert description["method"] == params.runs["asked"].method
    test = pd.read_parquet(out / "predictions/asked/0/test.parquet")
    assert len(test) == 12
    assert np.isfinite(test.filter(like="p_")).all(axis=None)
    assert "target" not in test
    toy_models.write_evidence(out, params, "asked")
    if segmenter is not None:
        ct_toys.write_segmenter(out, segmenter)
    described = describe(params, "asked", out)
    calibration = tuple(studies(params, "asked", out).values())
    bundle.write(described, root / "model", out, calibration=calibration)
    assert described.threshold == operating_points(calibration[0])[1].threshold
    shutil.rmtree(out)
    return Predictor(root / "model", "chestflow-asked v1")


def _check(answer: Answer, predictor: Predictor, file: Path, overlay: Path) -> None:
    """The whole record of an answer for a file like those of the training."""
    classes = predictor.bundle.classes
    assert (answer.status, answer.reason, answer.detail) == ("answered", None, None)
    assert (answer.file, answer.model) == (str(file), "chestflow-asked v1")
    assert answer.notice == bundle.PHANTOM_NOTICE
    assert list(answer.probabilities) == list(classes)
    assert sum(answer.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
    assert answer.probability == pytest.approx(answer.probabilities["covid19"], abs=1e-6)
    assert 0 <= float(answer.probability) <= 1  # type: ignore[arg-type]
    assert answer.threshold == 0.5
    assert answer.label == ("covid19" if float(answer.probability) >= 0.5 else classes[0])  # type: ignore[arg-type]
    assert (answer.low, answer.high, answer.network) == (None, None, "single")
    assert 0 <= float(answer.unusual) <= 1  # type: ignore[arg-type]
    assert answer.overlay == str(overlay)
    assert cv2.imread(str(overlay)).std() > 0
    assert json.loads(json.dumps(answer.plain()))["label"] == answer.label


@pytest.mark.parametrize("name", sorted(VOLUMES))
def test_volumes(name: str, outs: Path, tmp_path: Path) -> None:
    predictor = _predictor(_params(name, VOLUMES), outs, tmp_path)
    hu, infected = toy_models.ct(ASKED, True)
    file = toy_models.write_ct(tmp_path / "v.nii.gz", hu)
    plain = predictor.answer(file, overlay=tmp_path / "plain.png")
    _check(plain, predictor, file, tmp_path / "plain.png")
    assert (plain.ratio, plain.ratio_from) == ("unknown", "unknown")
    # what lies in the lungs as they are found does not widen them: the network sees the same lungs as before
    lung = segment_ct(hu, toy_models.SPACING) & infected
    mask = toy_models.write_ct(tmp_path / "m.nii.gz", lung.astype(np.uint8))
    given = predictor.answer(file, infection_mask=mask, overlay=tmp_path / "given.png")
    _check(given, predictor, file, tmp_path / "given.png")
    assert given.ratio_from == "mask"
    assert float(given.ratio) == pytest.approx(lung.sum() / predictor.lungs(_image(file, "ct_volume")).sum())  # type: ignore[union-attr]
    assert (given.probability == pytest.approx(plain.probability, abs=1e-6)) is (name != "infection_ratio")
    if name == "infection_ratio":  # the toys differ in extent alone: more of it is COVID-19, none known is the prior
        assert float(given.probability) > float(plain.probability)  # type: ignore[arg-type]
    assert predictor.bundle.reads_infection is (name == "infection_ratio")


@pytest.mark.parametrize("name", sorted(SLICES))
def test_slices(name: str, outs: Path, tmp_path: Path) -> None:
    picture, infected = ct_toys.ct_slice(ASKED, True)
    predictor = _predictor(_params(name, SLICES), outs, tmp_path, segmenter=picture)
    held = {path.name for path in (tmp_path / "model").rglob("*.safetensors") if "ct_slice" in path.name}
    assert bool(held) is predictor.bundle.reads_infection
    assert predictor.bundle.reads_infection is (name in LOOKS | {"infection_ratio"})
    file = toy_models.write_xray(tmp_path / "s.png", picture)
    mask = toy_models.write_xray(tmp_path / "m.png", 255 * infected.astype(np.uint8))
    given = predictor.answer(file, infection_mask=mask, overlay=tmp_path / "given.png")
    _check(given, predictor, file, tmp_path / "given.png")
    own = predictor.answer(file)
    for answer in (given, own):  # nothing finds the lungs of a slice, so there is no ratio
        assert (answer.ratio, answer.ratio_from) == ("unknown", "unknown")
    heard = _logits(predictor, file, infected)
    # without a mask, a network that looks at one gets what the bundle's own segmenter draws
    drawn = predictor.marker.mark(_image(file, "ct_slice"), None, None).infection
    assert (drawn is not None) is predictor.bundle.reads_infection
    if drawn is None:
        assert _logits(predictor, file, np.zeros_like(infected)) == heard
        assert own.plain() == {**given.plain(), "overlay": None}
        return
    assert 0.2 < drawn.mean() < 0.8
    same = toy_models.write_xray(tmp_path / "own.png", 255 * drawn.astype(np.uint8))
    assert predictor.answer(file, infection_mask=same).plain() == own.plain()
    assert (_logits(predictor, file, drawn) != heard) is (name in LOOKS)


def _logits(predictor: Predictor, file: Path, infection: np.ndarray) -> list[float]:
    image = _image(file, "ct_slice")
    marked = predictor.marker.mark(image, predictor.lungs(image), infection)
    return list(predictor.networks.ask(image, marked, {"single"})[0].logits)


def _image(file: Path, modality: str) -> Any:
    return inputs.load(file, modality)
