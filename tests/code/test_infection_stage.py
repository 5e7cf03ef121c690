"""Stage infection, and what segment makes of it: who trains, masks of the network, evidence, the same bytes twice."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from chestflow.config import Infection, Segment
from chestflow.config_segmentation import InfectionSlices, InfectionVolumes, PseudoLabels
from chestflow.data import pack_building
from chestflow.data.packing import Item
from chestflow.data.packs import Pack
from chestflow.data.recipes import nearest
from chestflow.errors import DataError, TrainingError
from chestflow.evaluation.shortcut_views import read_views
from chestflow.evaluation.truth import NONE, OUTLINE, Truth
from chestflow.files import read_json
from chestflow.segmentation import infection, masks, places, pseudo_label, slice_network
from chestflow.segmentation.infection_fitting import fit_infection
from chestflow.segmentation.run import segment
from chestflow.training.loader import Reader
from tests.code.infection_cases import SIDE, ct_slice, ct_volume, slice_rows, stand_in, tables, volume_rows, write_png
from tests.code.test_lungs import SPACING

#: The network masks all slices, those with source masks too.
ALIKE = Segment(infection_by_network=["ct_slice"])


def slices(**more: object) -> InfectionSlices:
    own = {"sets": ["a"], "backbone": "resnet18", "channel": 8, "size": SIDE, "scales": [1.0], "batch_size": 8}
    return InfectionSlices(**{**own, "epochs": 30, "lr": 3e-2, "schedule": "cosine", **more})


def fit(rows: list[dict], roles: dict[str, str], settings: Infection, out: Path, **more: object) -> dict:
    manifest, splits, groups = tables(rows, roles)
    modality = rows[0]["modality"]
    fit_infection(modality, manifest, splits, groups, settings, Segment(), out, seed=1, threads=1, workers=1, **more)
    return read_json(places.infection(out, modality) / "evidence.json")


def ratios(rows: list[dict], out: Path, settings: Segment | None = None) -> pd.DataFrame:
    manifest, splits, groups = tables(rows, {})
    modality, own = rows[0]["modality"], settings or Segment()
    trained = infection.load(places.infection(out, modality))
    segment(modality, manifest, splits[:0], groups, own, out, seed=1, threads=1, workers=1, infection=trained)
    return places.ratios(out, modality).set_index("image_id")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path, dict]:
    """A real Inf-Net on infected slices and healthy ones whose label counts as an empty mask."""
    root = tmp_path_factory.mktemp("slices")
    rows = slice_rows(root, 18, healthy=10, unlabelled=2)
    roles = {f"a-{number:03d}": "test" for number in (0, 1, 2, 3, 18, 19, 20, 21)}
    settings = Infection(ct_slice=slices(epochs=8, batch_size=4, lr=3e-3, normal_as_empty=True))
    return rows, root, fit(rows, roles, settings, root)


def test_a_real_network_learns_and_leaves_healthy_slices_empty(trained: tuple[list[dict], Path, dict]) -> None:
    _, root, found = trained
    assert found["mode"] == "held_out"
    assert found["trained_on"] == {"images": 20, "patients": 20}
    assert (found["images"], found["patients"]) == (4, 4)
    assert found["figures"]["dice"]["value"] > 0.5
    assert found["healthy"] == {"images": 4, "empty": 4, "marked_share": 0.0}
    assert found["ratio_error"]["images"] == 8
    assert found["ratio_error"]["mae"] < 0.1
    segmenter = infection.load(places.infection(root, "ct_slice"))
    for seed in range(100, 106):
        healthy, _, _ = ct_slice(seed, healthy=True)
        predicted = segmenter.predict_slice(healthy)
        assert predicted is not None
        assert not predicted.any()
    grey, truth, _ = ct_slice(110)
    probability = segmenter.probability_slice(np.ascontiguousarray(cv2.resize(grey, (90, 70))))
    assert probability is not None
    assert probability.shape == (70, 90)
    assert probability.min() >= 0
    assert probability.max() <= 1
    assert segmenter.predict_volume(np.zeros((2, 8, 8), np.int16), SPACING, np.ones((2, 8, 8), bool)) is None
    assert segmenter.modalities == ("ct_slice",)
    assert truth.any()


def test_segment_takes_source_masks_first_and_the_network_second(trained: tuple[list[dict], Path, dict]) -> None:
    rows, root, _ = trained
    bare = {**rows[28], "image_id": "a-bare", "lung_mask": None}
    found = ratios([*rows, bare], root)
    assert found["infection_from"].value_counts().to_dict() == {"source": 18, "network": 13}
    healthy = found.loc[[f"a-{number:03d}" for number in range(18, 28)]]
    assert healthy["has_infection"].all()
    assert (healthy["ratio"] == 0).all()
    assert (found.loc[["a-028", "a-029"], "ratio"] > 0.01).all()
    assert np.isnan(found.loc["a-bare", "ratio"]), "a slice without lungs has no ratio"
    path = masks.find(places.masks(root, "ct_slice"), "a-028")
    assert path is not None
    _, truth, _ = ct_slice(28)
    mask = masks.read(path) & masks.INFECTION > 0
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.5


def test_the_network_may_mask_all_images_alike(trained: tuple[list[dict], Path, dict]) -> None:
    rows, root, _ = trained
    found = ratios(rows, root, ALIKE)
    assert set(found["infection_from"]) == {"network"}


@pytest.fixture
def alike(trained: tuple[list[dict], Path, dict], tmp_path: Path) -> tuple[list[dict], Path, dict[str, np.ndarray]]:
    """The network masks all slices: one outlined outside the lungs, an outlined one, one whose outline is empty, a
    healthy and an infected one without outlines. Their rows, the outs, and the outlines."""
    rows, root, _ = trained
    outlines = {"a-000": np.zeros((SIDE, SIDE), bool), "a-001": ct_slice(1)[1], "a-002": np.zeros((SIDE, SIDE), bool)}
    outlines["a-000"][:12, :12] = True
    chosen = [dict(rows[number]) for number in (0, 1, 2, 18, 28)]
    for row, (name, outline) in zip(chosen, outlines.items(), strict=False):
        row["infection_mask"] = [write_png(tmp_path / f"{name}-outline.png", outline)]
    return chosen, root, outlines


def test_what_the_source_outlines_is_kept_beside_the_networks_mask(
    alike: tuple[list[dict], Path, dict[str, np.ndarray]],
) -> None:
    rows, root, outlines = alike
    found = ratios(rows, root, ALIKE)
    assert found["outlined"].tolist() == [True, True, True, False, False]
    bare = ratios([{**row, "infection_mask": None} for row in rows], root, ALIKE)
    pd.testing.assert_frame_equal(found.drop(columns="outlined"), bare.drop(columns="outlined"))
    assert not bare["outlined"].any()
    ratios(rows, root, ALIKE)
    network = infection.load(places.infection(root, "ct_slice"))
    for row in rows:
        name = row["image_id"]
        path = masks.find(places.masks(root, "ct_slice"), name)
        assert path is not None
        bits, (grey, _, lungs) = masks.read(path), ct_slice(int(name[-3:]), healthy=name == "a-018")
        marked = network.for_image(name).predict_slice(grey)
        assert np.array_equal((bits & masks.INFECTION) > 0, marked)
        assert np.array_equal((bits & masks.LUNG) > 0, lungs)
        assert np.array_equal((bits & masks.OUTLINED) > 0, outlines.get(name, np.zeros((SIDE, SIDE), bool)))
    assert not np.array_equal(network.for_image("a-001").predict_slice(ct_slice(1)[0]), outlines["a-001"])


def test_outlines_reach_the_truth_and_nothing_that_a_network_reads(
    alike: tuple[list[dict], Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    rows, root, outlines = alike
    ratios(rows, root, ALIKE)
    manifest, ids = tables(rows, {})[0], [row["image_id"] for row in rows]
    with_outlines = places.masks(root, "ct_slice")
    bare = places.masks(tmp_path, "ct_slice")
    for name in ids:
        masks.write(bare, name, masks.read(masks.find(with_outlines, name)) & 3)  # type: ignore[arg-type]
    shutil.copy(with_outlines.parent / "ratio.parquet", bare.parent)
    recipe = {"modality": "ct_slice", "size": [24, 40], "clahe": None, "keep_aspect": True, "keep": "lungs"}
    packs, batches, views = [], [], []
    for name, folder in (("kept", with_outlines), ("plain", bare)):
        pack_building.build(manifest, recipe, folder, tmp_path / name, workers=1)
        packs.append(Pack.open(tmp_path / name))
        table = pd.DataFrame({"row": range(len(ids)), "target": 0, "ratio": 0.1})
        reader = Reader(packs[-1], table, torch.device("cpu"))
        batches.append(vars(reader.finish(reader.read(range(len(ids))))))
        items = [Item(0, row["image_id"], row["path"], masks.find(folder, row["image_id"])) for row in rows]
        views.append([read_views(item, recipe) for item in items])
    kept, plain = packs
    assert not np.array_equal(kept.masks, plain.masks)
    assert np.array_equal(kept.masks & 3, plain.masks)
    assert np.array_equal(kept.data, plain.data)
    pd.testing.assert_frame_equal(kept.index, plain.index)
    for name in ("image", "lung", "infection", "has_infection", "ratio"):
        assert torch.equal(batches[0][name], batches[1][name]), name
    for one, other in zip(*views, strict=True):
        for view in one:
            np.testing.assert_array_equal(one[view], other[view])
    truth = Truth(kept, root)
    for row, name in enumerate(ids):
        lesion = truth.lesion(name, kept.masks[row])
        if name not in outlines:
            assert lesion is None
            continue
        expected = np.zeros((24, 40), bool)
        expected[:, 8:32] = nearest(outlines[name], (24, 24))  # the square slice in the middle of the wide recipe
        assert np.array_equal(lesion, expected)  # type: ignore[arg-type]
    assert [truth.kind(name) for name in ids] == [OUTLINE] * 3 + [NONE] * 2


def test_a_damaged_outline_names_its_image(alike: tuple[list[dict], Path, dict[str, np.ndarray]]) -> None:
    rows, root, _ = alike
    cv2.imwrite(rows[1]["infection_mask"][0], np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match="image a-001 cannot be segmented"):
        ratios(rows, root, ALIKE)


def test_without_sets_there_is_no_segmenter(tmp_path: Path) -> None:
    assert fit(slice_rows(tmp_path, 2), {}, Infection(), tmp_path) == {}
    segmenter = infection.load(places.infection(tmp_path, "ct_slice"))
    assert segmenter.modalities == ()
    assert segmenter.predict_slice(ct_slice(0)[0]) is None
    assert infection.files(places.infection(tmp_path, "ct_slice"), "ct_slice") == []


def test_pseudo_labels_leave_out_what_a_classifier_is_judged_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    rows = slice_rows(tmp_path, 12, unlabelled=9)
    roles = {"a-000": "test", "a-001": "tune", "a-012": "test", "a-013": "tune", "a-014": "external"}
    own = {"sets": ["a"], "chunk": 4, "epochs": 1, "batch_size": 4, "lr": 1e-2}
    fit(rows, roles, Infection(ct_slice=slices(pseudo=PseudoLabels(**own))), tmp_path)
    record = read_json(places.infection(tmp_path, "ct_slice") / "pseudo.json")["final"]
    assert sorted(record["masks"]) == [f"a-{number:03d}" for number in range(15, 21)]
    assert [entry["labelled"] for entry in record["rounds"]] == [4, 2]
    assert all(entry["held"]["slices"] == 2 for entry in record["rounds"])
    assert {entry["model"] for entry in record["masks"].values()} == {e["model"] for e in record["rounds"]}
    written = sorted(path.stem for path in (places.infection(tmp_path, "ct_slice") / "pseudo").iterdir())
    assert written == sorted(record["masks"])
    mask = cv2.imread(str(places.infection(tmp_path, "ct_slice") / "pseudo" / "a-015.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (SIDE, SIDE)
    assert set(np.unique(mask)) <= {0, 255}
    transductive = PseudoLabels(**own, include_test_in_pseudo=True)
    fit(rows, roles, Infection(ct_slice=slices(pseudo=transductive)), tmp_path)
    record = read_json(places.infection(tmp_path, "ct_slice") / "pseudo.json")["final"]
    assert sorted(record["masks"]) == [f"a-{number:03d}" for number in range(12, 21)]


def test_the_stage_killed_in_a_round_and_started_again_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    rows = slice_rows(tmp_path, 12, unlabelled=9)
    own = PseudoLabels(sets=["a"], chunk=4, epochs=2, batch_size=4, lr=1e-2)
    settings = Infection(ct_slice=slices(epochs=3, pseudo=own))
    fit(rows, {}, settings, tmp_path / "whole")
    label = pseudo_label.Loop._label

    def dying(self: pseudo_label.Loop, step: int) -> None:
        if step == 1:
            raise KeyboardInterrupt
        label(self, step)

    monkeypatch.setattr(pseudo_label.Loop, "_label", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(rows, {}, settings, tmp_path / "later", checkpoint_root=tmp_path / "kept")
    assert not (tmp_path / "later" / "infection" / "ct_slice").exists()
    assert any((tmp_path / "kept").rglob("checkpoint.json"))
    monkeypatch.setattr(pseudo_label.Loop, "_label", label)
    fit(rows, {}, settings, tmp_path / "later", checkpoint_root=tmp_path / "kept")
    content = [
        {
            path.name: path.read_bytes()
            for path in places.infection(tmp_path / name, "ct_slice").rglob("*")
            if path.is_file()
        }
        for name in ("whole", "later")
    ]
    assert content[0] == content[1]
    assert not any(path.is_file() for path in (tmp_path / "kept").rglob("*"))


def test_cross_fitted_networks_never_saw_the_group_they_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    rows = slice_rows(tmp_path, 12, unlabelled=2)
    saw = []
    train = slice_network.train

    def watched(model: slice_network.SliceNetwork, images: np.ndarray, *rest: object, **more: object) -> None:
        saw.append({image.tobytes() for image in images})
        train(model, images, *rest, **more)

    monkeypatch.setattr(slice_network, "train", watched)
    roles = {row["image_id"]: "test" for row in rows}
    said = fit(rows, roles, Infection(ct_slice=slices(epochs=1)), tmp_path)
    assert said["mode"] == "cross_fit"
    assert said["images"] == 12
    assert [len(seen) for seen in saw] == [12, 6, 6]
    segmenter = infection.load(places.infection(tmp_path, "ct_slice"))
    weights = [slice_network.digest(part.model.network.state_dict()) for part in segmenter.halves["ct_slice"]]
    assert len(set(weights)) == 2
    for number in range(12):
        picture = ct_slice(number)[0].tobytes()
        chosen = segmenter.for_image(f"a-{number:03d}").final["ct_slice"].model
        half = weights.index(slice_network.digest(chosen.network.state_dict()))
        assert picture not in saw[1 + half]
    assert segmenter.for_image("another").final["ct_slice"] is segmenter.final["ct_slice"]
    served = infection.load(places.infection(tmp_path, "ct_slice"), halves=False)
    assert served.halves == {}


@pytest.mark.parametrize("network", ["slices", "unet3d"])
def test_volumes_by_either_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    stand_in(monkeypatch)
    rows = volume_rows(tmp_path, 10)
    roles = {"v-000": "test", "v-001": "test"}
    own = InfectionVolumes(
        sets=["a"], network=network, slices=slices(sets=[], epochs=4), slices_per_volume=6,
        spacing_mm=(8.0, 6.0, 6.0), patch=(16, 32, 32), width=4, epochs=7, lr=8e-3,
    )  # fmt: skip
    said = fit(rows, roles, Infection(ct_volume=own), tmp_path)
    assert said["trained_on"]["images"] == 8
    assert said["images"] == 2
    assert said["ratio_error"]["images"] == 2
    if network == "unet3d":  # what stands for Inf-Net here is too small to find lesions
        assert said["figures"]["dice"]["value"] > 0.4
    segmenter = infection.load(places.infection(tmp_path, "ct_volume"))
    assert segmenter.modalities == ("ct_volume",)
    hu, _, lungs = ct_volume(20)
    found = segmenter.predict_volume(hu, SPACING, lungs)
    assert found is not None
    assert found.shape == hu.shape
    nothing = segmenter.predict_volume(hu, SPACING, np.zeros_like(lungs))
    assert nothing is not None
    assert not nothing.any()
    bare = [{**row, "infection_mask": None} for row in rows[:2]]
    table = ratios(bare, tmp_path)
    assert set(table["infection_from"]) == {"network"}
    assert table["ratio"].between(0.001 if network == "unet3d" else 0, 0.5).all()
    names = [path.name for path in infection.files(places.infection(tmp_path, "ct_volume"), "ct_volume")]
    assert names == ["infection.json", "ct_volume.safetensors"]


def test_the_same_bytes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    rows = slice_rows(tmp_path, 12)
    settings = Infection(ct_slice=slices(epochs=2))
    fit(rows, {}, settings, tmp_path)
    first = {path: path.read_bytes() for path in places.infection(tmp_path, "ct_slice").iterdir()}
    fit(rows, {}, settings, tmp_path)
    assert first == {path: path.read_bytes() for path in places.infection(tmp_path, "ct_slice").iterdir()}


def test_faults_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    with pytest.raises(DataError, match=r"infection\.ct_slice\.sets has 3 patients with infection masks"):
        fit(slice_rows(tmp_path, 3), {}, Infection(ct_slice=slices()), tmp_path)
    with pytest.raises(TrainingError, match="run the stage `infection`"):
        infection.load(tmp_path / "nowhere")
    fit(slice_rows(tmp_path, 12), {}, Infection(ct_slice=slices(epochs=1)), tmp_path)
    weights = places.infection(tmp_path, "ct_slice") / "ct_slice.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(TrainingError, match="damaged"):
        infection.load(places.infection(tmp_path, "ct_slice"))
    with pytest.raises(TrainingError, match=r"infection\.ct_slice\.lr"):
        fit(slice_rows(tmp_path, 12), {}, Infection(ct_slice=slices(lr=1e30, epochs=3)), tmp_path)


def test_a_failed_stage_leaves_the_last_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    rows = slice_rows(tmp_path, 12)
    fit(rows, {}, Infection(ct_slice=slices(epochs=1)), tmp_path)
    before = (places.infection(tmp_path, "ct_slice") / "ct_slice.safetensors").read_bytes()
    cv2.imwrite(rows[0]["infection_mask"][0], np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match="image a-000"):
        fit(rows, {}, Infection(ct_slice=slices(epochs=1)), tmp_path)
    assert (places.infection(tmp_path, "ct_slice") / "ct_slice.safetensors").read_bytes() == before
    assert not (tmp_path / ".infection-ct_slice.partial").exists()
