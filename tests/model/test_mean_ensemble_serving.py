"""A mean of two methods with different recipes answers for files, is refused and registered as other models are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from chestflow.config import Params
from chestflow.data.recipes import apply
from chestflow.evaluation.calibration import OperatingPoint
from chestflow.files import write_json, write_parquet
from chestflow.imaging.images import Radiograph
from chestflow.serving import abstention, bundle, inputs
from chestflow.serving.answer import Predictor, softmax
from chestflow.serving.infection import UNKNOWN, Marked
from chestflow.tracking.packing import describe, studies
from chestflow.tuning import mean_ensemble
from tests import stores
from tests.model import bundles, toy_models

WIDE = {"modality": "cxr", "size": [72, 96], "keep_aspect": True}
SHARES = {"plain": 0.75, "wide": 0.25}


def _params() -> Params:
    base = toy_models.params().model_dump(mode="json", by_alias=True)
    wide = {"method": "baselines", "task": "covid_vs_rest", "recipe": "wide", "seed": 7}
    wide["config"] = {"network": "squeezenet1_1", "epochs": 2, "batch_size": 14}
    return toy_models.params(
        recipes={**base["recipes"], "wide": WIDE},
        runs={**base["runs"], "wide": wide},
        ensembles={**base["ensembles"], "joined": {"members": ["plain", "wide"], "weights": [3, 1]}},
    )


@dataclass
class Made:
    """Trained members and their mean, in a folder of its own."""

    out: Path
    params: Params


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    from chestflow.training.run import train_run

    root, params = tmp_path_factory.mktemp("joined"), _params()
    out = root / "out"
    shutil.copytree(toy_models.trained() / "out", out)
    plain = params.recipes["wide"].model_dump(mode="json")
    pictures = [
        apply(Radiograph(toy_models.xray(i, i % 2 == 1).astype(np.float32), 8, None, "L", "png"), None, plain)[0]
        for i in range(len(toy_models.ROLES))
    ]
    folder = out / "packs" / "wide"
    folder.mkdir(parents=True)
    np.save(folder / "data.npy", np.stack(pictures))
    np.save(folder / "masks.npy", np.zeros((len(pictures), *WIDE["size"]), np.uint8))
    shutil.copyfile(out / "packs/small/index.parquet", folder / "index.parquet")
    write_json(folder / "recipe.json", plain)
    threads = torch.get_num_threads()
    train_run(params, "wide", 0, out, root / ".checkpoints")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    mean_ensemble.tune_shares("joined", 0, params, out, root / ".checkpoints")
    mean_ensemble.apply_shares("joined", 0, params, out)
    decided = json.loads((out / "tune/w/joined/0.json").read_text())
    for name in ("wide", "joined"):
        toy_models.write_evidence(out, params, name)
    write_json(out / "tune/w/joined/0.json", decided)
    return Made(out, params)


@pytest.fixture(scope="module")
def predictor(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("bundle")
    _write(made, folder)
    return Predictor(folder, "chestflow-joined v1")


def _write(made: Made, folder: Path, **changes: object) -> bundle.Bundle:
    described = replace(describe(made.params, "joined", made.out), **changes)
    bundle.write(described, folder, made.out, calibration=tuple(studies(made.params, "joined", made.out).values()))
    return described


def test_the_bundle_holds_all_members_with_their_recipes_and_weights(made: Made, predictor: Predictor) -> None:
    found = predictor.bundle
    assert [(m.run, m.fold, m.part) for m in found.members] == [("plain", 0, "member"), ("wide", 0, "member")]
    assert found.shares == SHARES
    assert (found.recipe["name"], found.recipe_of("wide")["name"]) == ("small", "wide")
    assert found == describe(made.params, "joined", made.out)
    assert (predictor.folder / "tune/w/joined/0.json").exists()
    assert (predictor.folder / "tune/calibration/joined/0.json").exists()


def test_a_file_is_answered_as_the_stages_predicted(made: Made, predictor: Predictor, tmp_path: Path) -> None:
    known = pd.read_parquet(made.out / "predictions/joined/0/test.parquet")
    answered = 0
    for row in known.itertuples():
        index = int(row.image_id.split("-")[1])
        answer = predictor.answer(toy_models.write_xray(tmp_path / "x.png", toy_models.xray(index, index % 2 == 1)))
        if answer.status == "answered":
            answered += 1
            assert answer.network == "ensemble"
            assert answer.probability == pytest.approx(row.p_covid19, abs=1e-5)
    assert answered > 6


def test_each_member_sees_the_picture_by_its_own_recipe(predictor: Predictor, tmp_path: Path) -> None:
    image = inputs.load(toy_models.write_xray(tmp_path / "x.png", toy_models.xray(1, True)), "cxr")
    opinions = predictor.networks.ask(image, Marked(None, None, UNKNOWN), {"member"})
    assert [o.frame.shape for o in opinions] == [(64, 64), (72, 96)]
    assert predictor.networks.ask(image, Marked(None, None, UNKNOWN), {"single"}) == []
    joined = sum(SHARES[o.member.run] * softmax(o.logits) for o in opinions)
    found, spread = predictor.probabilities(opinions, None)
    np.testing.assert_allclose(found, joined, atol=1e-6)
    assert spread is None


def test_the_heat_is_the_weighted_mean_on_the_original_grid(predictor: Predictor, tmp_path: Path) -> None:
    from chestflow.serving.overlay import full_heat

    picture = toy_models.write_xray(tmp_path / "x.png", toy_models.xray(1, True))
    image = inputs.load(picture, "cxr")
    opinions = predictor.networks.ask(image, Marked(None, None, UNKNOWN), {"member"})
    each = [SHARES[o.member.run] * full_heat(o.heat, o.frame.geometry, o.frame.shape) for o in opinions]
    want = sum(each)
    heat = predictor.heat(opinions, None)
    assert heat.shape == (96, 96)
    np.testing.assert_allclose(heat, (want - want.min()) / (want.max() - want.min()), atol=1e-6)
    answer = predictor.answer(picture, overlay=tmp_path / "o.png")
    if answer.status == "answered":
        assert cv2.imread(answer.overlay).shape[1] == 960
    alone = predictor.heat(opinions[:1], None)
    assert (alone.min(), alone.max()) == pytest.approx((0, 1), abs=0.05)


def test_noise_is_refused_and_fitting_pictures_seldom(made: Made, predictor: Predictor, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96)).astype(np.uint8)
    answer = predictor.answer(toy_models.write_xray(tmp_path / "x.png", noise))
    assert (answer.status, answer.reason) == ("abstained", "unlike_training")
    found = abstention.false_abstention(predictor.bundle, predictor.folder, made.out)
    assert (found["images"], found["abstained"] <= 5) == (12, True)


def test_shares_of_lung_are_judged_as_each_member_sees_them() -> None:
    ranges = [{"lung_area_range": torch.tensor([0.1, 0.3])}, {"lung_area_range": torch.tensor([0.4, 0.6])}]
    assert abstention.verdict([0.5, 0.5], [0.2, 0.5], ranges) is None
    assert abstention.verdict([0.5, 0.5], [0.35, 0.65], ranges)[0] == "lung_area"
    assert abstention.verdict([0.5, 0.5], [None, 0.5], ranges) is None


def test_without_a_threshold_the_most_probable_class_is_called(made: Made, tmp_path: Path) -> None:
    _write(made, tmp_path / "bundle", threshold=None)
    answer = Predictor(tmp_path / "bundle", "m").answer(
        toy_models.write_xray(tmp_path / "x.png", toy_models.xray(1, True)), overlay=tmp_path / "o.png"
    )
    assert answer.status == "answered"
    assert answer.threshold is None
    assert answer.label == max(answer.probabilities, key=answer.probabilities.get)
    assert json.loads(json.dumps(answer.plain(), allow_nan=False))["threshold"] is None


def test_bundles_of_earlier_versions_are_still_read(tmp_path: Path) -> None:
    described = bundles.write(tmp_path, "plain")
    values = json.loads((tmp_path / bundle.FILE).read_text())
    for key in ("recipes", "shares", "uniform"):
        del values[key]
    (tmp_path / bundle.FILE).write_text(json.dumps(values))
    assert bundle.read(tmp_path) == described


def test_the_uniform_network_alone_answers_at_its_own_point(tmp_path: Path) -> None:
    hu, infection = toy_models.ct(1, True)
    volume = toy_models.write_ct(tmp_path / "v.nii.gz", hu)
    mask = toy_models.write_ct(tmp_path / "m.nii.gz", infection.astype(np.uint8))
    described = bundles.write(tmp_path / "a", "pair")
    assert described.uniform == OperatingPoint(1.0, 0.5)
    bundles.write(tmp_path / "b", "pair", uniform=OperatingPoint(1000.0, 0.25), temperature=1.0, threshold=0.75)
    predictor = Predictor(tmp_path / "b", "m")
    alone = predictor.answer(volume)
    assert (alone.network, alone.threshold) == ("uniform", 0.25)
    assert alone.probability == pytest.approx(0.5, abs=1e-2)
    joined = predictor.answer(volume, infection_mask=mask)
    assert (joined.network, joined.threshold) == ("ensemble", 0.75)
    assert abs(joined.probability - 0.5) > 1e-2


@pytest.fixture
def registered(made: Made, tmp_path: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        root = stores.give(tmp_path / "repository", patch)
        shutil.copytree(made.out, root / "out")
        yield root


def test_a_mean_is_registered_with_its_runs_weights_and_card(made: Made, registered: Path) -> None:
    import mlflow

    from chestflow.tracking import lookup, registry, store

    done = registry.register(made.params, "joined")
    again = registry.register(made.params, "joined")
    assert (done.created, again.created) == (True, False)
    client = store.connect()
    version = lookup.resolve(client, "joined")
    assert len(version.tags["run_ids"].split(",")) == 2
    shown = client.get_run(version.run_id).data
    assert shown.tags["run"] == "joined"
    assert shown.metrics["used/w-0/weight_plain"] == 0.75
    assert shown.metrics["used/calibration-0/threshold"] == 0.5
    with lookup.files(version) as folder:
        card = (folder / "model_card.md").read_text()
        assert "| weights of the mean | plain 0.750, wide 0.250 |" in card
        assert "recipe small, 64 x 64; recipe wide, 72 x 96" in card
    picture = toy_models.write_xray(registered / "x.png", toy_models.xray(1, True))
    import base64

    model = mlflow.pyfunc.load_model("models:/chestflow-joined@candidate")
    row = model.predict(pd.DataFrame({"image": [base64.b64encode(picture.read_bytes()).decode()]})).iloc[0]
    with lookup.files(version) as folder:
        direct = Predictor(folder, version.label).answer(picture)
    assert (row["status"], row["network"]) == (direct.status, "ensemble")
    assert row["probability"] == pytest.approx(direct.probability, abs=1e-6)


def test_the_best_fold_brings_its_own_tuned_values(tmp_path: Path) -> None:
    """With ``register.members: best`` neither weights nor operating points of other folds take part."""
    out, params = tmp_path / "out", toy_models.params(folds=[0, 1], register={"members": "best"})
    values = {0: 0.6, 1: 0.9}
    for fold, auroc in values.items():
        for run in ("even", "sized"):
            about = {
                "task": {"name": "covid_vs_cap"},
                "input": {"modality": "ct_volume", "classes": ["cap", "covid19"]},
            }
            about |= {"recipe": {"name": "cube"}, "best": [{"phase": "a", "epoch": 1, "auroc": auroc}]}
            write_json(out / "train" / run / str(fold) / "model.json", about)
            toy_models.write_evidence(out, params, run)
        weights = {"w_extreme": 0.1 * (fold + 1), "w_middle": 0.9, "cut_low": 0.001, "cut_high": 0.2}
        write_json(out / "tune/w/pair" / f"{fold}.json", {**weights, "used": weights})
    toy_models.write_evidence(out, params, "pair")
    for fold in values:
        weights = {"w_extreme": 0.1 * (fold + 1), "w_middle": 0.9, "cut_low": 0.001, "cut_high": 0.2}
        write_json(out / "tune/w/pair" / f"{fold}.json", {**weights, "used": weights})
    images = pd.DataFrame(
        {"image_id": ["a"], "patient_id": "p", "source": "phantom", "modality": "ct_volume", "licence": "CC0-1.0"}
    )
    write_parquet(out / "manifest.parquet", images.assign(commercial_use=pd.array([True], "boolean"), lung_mask=None))
    split = pd.DataFrame({"cohort": "cts", "fold": [0], "image_id": "a", "role": "train"})
    write_parquet(out / "splits.parquet", split)
    best = describe(params, "pair", out)
    assert {member.fold for member in best.members} == {1}
    assert best.weighting.w_extreme == pytest.approx(0.2)
    assert (best.temperature, best.uniform.temperature) == (2.0, 2.0)  # fold 1's alone, not the folds' median
