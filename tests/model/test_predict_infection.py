"""An answer's infection: the caller's mask wins, else the model's own segmenter, else unknown; and odd volumes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from chestflow.errors import TrainingError
from chestflow.imaging.images import Radiograph, Volume
from chestflow.segmentation import infection, places, slice_network
from chestflow.segmentation.infection import InfectionSegmenter, Segmenter
from chestflow.serving import bundle
from chestflow.serving.answer import Answer, Predictor
from chestflow.serving.bundle import Weighting
from chestflow.serving.infection import Marked, Marker
from chestflow.serving.networks import Networks
from chestflow.tracking.packing import describe
from tests.model import bundles, toy_models
from tests.model.test_infection_ratio import write_outs


class Threshold:
    """Stands for a trained segmenter: what is denser than air in the lungs of the toys is ill."""

    def __init__(self) -> None:
        self.asked = 0

    def predict_volume(self, hu: np.ndarray, spacing_mm: tuple[float, ...], lung: np.ndarray) -> np.ndarray:
        self.asked += 1
        assert lung.dtype == bool
        return lung & (hu > -700)

    def predict_slice(self, grey: np.ndarray) -> np.ndarray:
        self.asked += 1
        assert grey.dtype == np.uint8
        return grey > 100


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> Threshold:
    found = Threshold()
    monkeypatch.setattr(Marker, "_load", lambda self: found)
    return found


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return toy_models.write_ct(tmp_path / "volume.nii.gz", toy_models.ct(1, True)[0])


def pair(folder: Path, *, segments: bool, **changes: Any) -> Predictor:
    bundles.write(folder, "pair", **changes)
    if segments:
        (folder / "infection").mkdir()
    return Predictor(folder, "m")


def test_a_raw_volume_gets_its_own_ratio_and_the_whole_ensemble(
    segmenter: Threshold, volume: Path, tmp_path: Path
) -> None:
    answer = pair(tmp_path / "b", segments=True).answer(volume)
    assert (answer.status, answer.network, answer.ratio_from) == ("answered", "ensemble", "network")
    assert 0.05 < float(answer.ratio) < 0.6
    assert segmenter.asked == 1


def test_the_weight_follows_that_ratio(segmenter: Threshold, volume: Path, tmp_path: Path) -> None:
    """With w at both ends of the range and 1 between, only the ratio decides which network is heard."""
    predictor = pair(tmp_path / "b", segments=True)
    given = predictor.bundle

    def heard(w: float, middle: float) -> float:
        predictor.bundle = replace(given, weighting=Weighting(w, middle, 0.001, 0.03))
        return float(predictor.answer(volume).probability)  # type: ignore[arg-type]

    balanced, uniform = heard(0.0, 0.0), heard(1.0, 1.0)
    assert balanced != pytest.approx(uniform, abs=1e-4)
    for w in (0.0, 0.25, 1.0):
        assert heard(w, 1.0) == pytest.approx(w * uniform + (1 - w) * balanced, abs=1e-6)


def test_the_callers_mask_wins(segmenter: Threshold, volume: Path, tmp_path: Path) -> None:
    mask = np.zeros(toy_models.ct(1, True)[0].shape, np.uint8)
    mask[10:12, 20:24, 14:16] = 1
    given = toy_models.write_ct(tmp_path / "mask.nii.gz", mask)
    answer = pair(tmp_path / "b", segments=True).answer(volume, infection_mask=given)
    assert answer.ratio_from == "mask"
    assert 0 < float(answer.ratio) < 0.01
    assert segmenter.asked == 0


def test_without_a_segmenter_it_answers_as_before(volume: Path, tmp_path: Path) -> None:
    answer = pair(tmp_path / "b", segments=False).answer(volume)
    assert (answer.status, answer.network) == ("answered", "uniform")
    assert (answer.ratio, answer.ratio_from) == ("unknown", "unknown")


def test_a_segmenter_without_a_network_for_volumes_leaves_the_ratio_unknown(
    segmenter: Threshold, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenter, "predict_volume", lambda hu, spacing, lung: None)
    answer = pair(tmp_path / "b", segments=True).answer(volume)
    assert (answer.status, answer.network, answer.ratio_from) == ("answered", "uniform", "unknown")


def test_finding_nothing_is_a_ratio_of_zero(
    segmenter: Threshold, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenter, "predict_volume", lambda hu, spacing, lung: np.zeros_like(lung))
    answer = pair(tmp_path / "b", segments=True).answer(volume)
    assert (answer.ratio, answer.ratio_from, answer.network) == (0.0, "network", "ensemble")


def test_a_damaged_segmenter_is_no_answer(volume: Path, tmp_path: Path) -> None:
    predictor = pair(tmp_path / "b", segments=True)
    (tmp_path / "b/infection/infection.json").write_text("{")
    with pytest.raises(TrainingError, match="segmenter is missing or damaged"):
        predictor.answer(volume)


def test_masks_of_a_slice_hold_the_infection_without_any_lung(segmenter: Threshold, tmp_path: Path) -> None:
    (tmp_path / "infection").mkdir()
    picture = Radiograph(toy_models.xray(0, True).astype(np.float32), 8, None, "L", "png")
    marked = Marker(tmp_path, "ct_slice").mark(picture, None, None)
    assert marked.ratio is None
    assert (marked.origin, marked.ratio_from) == ("network", "unknown")
    assert set(np.unique(marked.bits)) == {0, 2}


def test_infection_widens_the_lungs_but_does_not_make_any() -> None:
    image = Volume(np.zeros((4, 4, 4), np.int16), (1.0, 1.0, 1.0))
    lung, infection = np.zeros((2, 4, 4, 4), bool)
    lung[0], infection[1] = True, True
    marked = Marker(Path("nowhere"), "ct_volume").mark(image, lung, infection)
    assert marked.ratio == 0.5
    nothing = Marker(Path("nowhere"), "ct_volume").mark(image, np.zeros_like(lung), infection)
    assert nothing.ratio is None
    assert not nothing.lung.any()


def test_a_bundle_holds_the_segmenter_of_its_modality_where_it_is_needed(tmp_path: Path, volume: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(toy_models.trained() / "out", out)
    small = slice_network.Shape("resnet18", 8, 64)
    network = Segmenter(slice_network.build(small), 0.5, (-1350.0, 150.0))
    whole = InfectionSegmenter({"ct_volume": network}, {"ct_volume": [network] * 2}, {"ct_volume": {}})
    infection.save(whole, places.infection(out, "ct_volume"))
    for name, needed in (("pair", True), ("even", False), ("plain", False)):
        described = describe(toy_models.params(), name, out)
        assert described.reads_infection is needed, name
        bundle.write(described, tmp_path / name, out)
        held = {p.name for p in (tmp_path / name / "infection").glob("*")}
        assert held == ({"infection.json", "ct_volume.safetensors"} if needed else set())
    assert bundle.read(tmp_path / "pair").reads_infection
    answer = Predictor(tmp_path / "pair", "m").answer(volume)
    assert answer.ratio_from == "network"
    assert 0 <= float(answer.ratio) <= 1


def ratio_model(folder: Path) -> Predictor:
    """A trained ratio-only model that carries a segmenter."""
    import torch

    from chestflow.training.run import train_run

    run = {"method": "infection_ratio", "task": "covid_vs_cap", "recipe": "cube"}
    params = toy_models.params(runs={"ratio": run}, ensembles={})
    out = folder / "out"
    write_outs(out)
    threads = torch.get_num_threads()
    train_run(params, "ratio", 0, out, folder / ".checkpoints")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    toy_models.write_evidence(out, params, "ratio")
    described = describe(params, "ratio", out)
    assert described.reads_infection
    bundle.write(replace(described, threshold=None), folder / "model", out)
    return Predictor(folder / "model", "m")


def test_a_network_that_reads_the_infection_gets_it(segmenter: Threshold, tmp_path: Path) -> None:
    predictor = ratio_model(tmp_path)
    prior = float(predictor.networks.network(predictor.bundle.members[0]).prior)
    files = {covid: toy_models.write_ct(tmp_path / f"{covid}.nii.gz", toy_models.ct(3, covid)[0]) for covid in (0, 1)}
    for file in files.values():
        opinion = predictor.networks.ask(*_asked(predictor, file), {"single"})[0]
        assert opinion.logits[1] == pytest.approx(prior, abs=1e-5)
    (tmp_path / "model" / "infection").mkdir()
    seen = {covid: predictor.networks.ask(*_asked(predictor, file), {"single"})[0] for covid, file in files.items()}
    assert seen[1].logits[1] > prior > seen[0].logits[1]
    assert seen[1].heat is None


def _asked(predictor: Predictor, file: Path) -> tuple[Volume, Marked]:
    from chestflow.serving import inputs

    image = inputs.load(file, "ct_volume")
    assert isinstance(image, Volume)
    return image, predictor.marker.mark(image, predictor.lungs(image), None)


def _odd(tmp_path: Path, kind: str) -> Path:
    hu = toy_models.ct(1, True)[0]
    if kind in ("1 slice", "3 slices"):
        hu = hu[12 : 12 + int(kind[0])]
    elif kind == "zeros":
        hu = np.zeros_like(hu)
    elif kind == "air":
        hu = np.random.default_rng(0).integers(-1002, -998, hu.shape).astype(np.int16)
    elif kind == "no lungs":
        hu = np.where(hu < -400, 40, hu).astype(np.int16)
        hu[:, :4] = -1000  # a body in the room's air
    path = tmp_path / "odd.nii.gz"
    z, y, x = toy_models.SPACING
    nibabel.save(nibabel.Nifti1Image(hu.transpose(2, 1, 0), np.diag([-x, -y, z, 1.0])), path)
    return path


@pytest.mark.parametrize(
    ("kind", "status", "reason", "words"),
    [
        ("1 slice", "abstained", "wrong_modality", "one slice; this model reads CT volumes of whole lungs"),
        ("3 slices", "abstained", "wrong_modality", "3 slices; this model reads CT volumes of whole lungs"),
        ("zeros", "abstained", "wrong_modality", "every voxel is 0"),
        ("air", "abstained", "blank", "shows nothing"),
        ("no lungs", "abstained", "lung_area", "lungs fill 0.0%"),
    ],
)
def test_odd_volumes_are_refused_with_their_reason(
    segmenter: Threshold, tmp_path: Path, kind: str, status: str, reason: str, words: str
) -> None:
    answer: Answer = pair(tmp_path / "b", segments=True).answer(_odd(tmp_path, kind))
    assert (answer.status, answer.reason) == (status, reason)
    assert words in str(answer.detail)
    assert (answer.probability, answer.ratio_from) == (None, "unknown")
    assert segmenter.asked == 0


def test_every_network_is_asked_with_the_same_masks(segmenter: Threshold, volume: Path, tmp_path: Path) -> None:
    predictor = pair(tmp_path / "b", segments=True)
    image, marked = _asked(predictor, volume)
    opinions = Networks(predictor.bundle, tmp_path / "b").ask(image, marked, {"uniform", "balanced"})
    assert [o.member.part for o in opinions] == ["uniform", "balanced"]
    assert opinions[0].share == opinions[1].share
