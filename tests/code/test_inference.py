"""Inference, the monitors, the embedding's statistics, and networks saved and restored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from chestflow.errors import TrainingError
from chestflow.imaging.cam import min_max
from chestflow.methods import registry
from chestflow.nn.output import Output
from chestflow.training import embedding, inference, monitors, restore
from chestflow.training.inference import infer
from tests import toy

CPU = torch.device("cpu")


def network(shape: tuple[int, ...] = (12, 12), **config: Any) -> nn.Module:
    torch.manual_seed(0)
    return toy.ToyNetwork(toy.ToyConfig(**config), registry.InputSpec("cxr", shape, ("rest", "covid19")))


@pytest.mark.parametrize("batch_size", [1, 4, 7, 20])
def test_logits_do_not_depend_on_the_batch(batch_size: int) -> None:
    pack, _ = toy.make_pack(14)
    net = network()
    rows = np.array([5, 0, 13, 2, 9, 1, 7])
    found = infer(net, pack, rows, device=CPU, batch_size=batch_size)
    image, lung = torch.from_numpy(pack.data[rows])[:, None].float(), torch.from_numpy(pack.masks[rows] & 1)[:, None]
    with torch.no_grad():
        want = net.eval()(image, lung.float())
    np.testing.assert_allclose(found.logits, want.logits.numpy(), atol=1e-6)
    np.testing.assert_allclose(found.embedding, want.embedding.numpy(), atol=1e-6)
    assert found.attention is None


@pytest.mark.parametrize("shape", [(12, 12), (6, 8, 8)])
@pytest.mark.parametrize("own_map", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_attention_is_the_networks_map_or_grad_cam(shape: tuple[int, ...], own_map: bool, frozen: bool) -> None:
    pack, _ = toy.make_pack(6, shape)
    net = network(shape, map=own_map).requires_grad_(not frozen)
    found = infer(net, pack, np.arange(6), device=CPU, batch_size=4, attention=True)
    assert found.attention is not None
    assert found.attention.shape == (6, *(s // 2 for s in shape))
    assert found.attention.dtype == np.float16
    flat = found.attention.reshape(6, -1)
    for heat in flat:
        assert (heat.min(), heat.max()) in ((0.0, 1.0), (0.0, 0.0))
    assert flat.max() == 1
    assert all(p.grad is None for p in net.parameters())
    if own_map:
        (batch,) = [torch.from_numpy(pack.data[:4])[:, None].float()]
        with torch.no_grad():
            heat = net(batch, torch.from_numpy(pack.masks[:4] & 1)[:, None].float()).attention[:, 0].numpy()
        low, high = heat.min((*range(1, heat.ndim),), keepdims=True), heat.max((*range(1, heat.ndim),), keepdims=True)
        np.testing.assert_allclose(found.attention[:4], (heat - low) / (high - low), atol=1e-3)


class Watched(nn.Module):
    """Notes how large each forward pass is, and whether it has gradients."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.passes: list[tuple[int, bool]] = []

    def forward(self, image: torch.Tensor, lung: torch.Tensor | None = None) -> Output:
        output: Output = self.inner(image, lung)
        self.passes.append((len(image), output.logits.requires_grad))
        return output


@pytest.mark.parametrize("shape", [(12, 12), (6, 8, 8)])
def test_gradients_are_computed_for_grad_cam_alone(shape: tuple[int, ...]) -> None:
    pack, _ = toy.make_pack(6, shape)
    own, none = Watched(network(shape, map=True)), Watched(network(shape))
    for net, attention in ((own, True), (none, False), (none, True), (none, True)):
        infer(net, pack, np.arange(6), device=CPU, batch_size=4, attention=attention)
    assert own.passes == [(4, False), (2, False)]
    without, tried, known = [(4, False), (2, False)], [(4, False), (4, True), (2, True)], [(4, True), (2, True)]
    assert none.passes == without + tried + known


def test_large_volumes_are_differentiated_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (6, 8, 8)
    pack, _ = toy.make_pack(7, shape)
    whole = infer(network(shape), pack, np.arange(7), device=CPU, batch_size=7, attention=True)
    for voxels, expected in ((2 * 6 * 8 * 8, [2, 2, 2, 1]), (1, [1] * 7)):
        monkeypatch.setattr(inference, "VOXELS", voxels)
        net = Watched(network(shape))
        found = infer(net, pack, np.arange(7), device=CPU, batch_size=7, attention=True)
        assert [count for count, gradients in net.passes if gradients] == expected
        np.testing.assert_allclose(found.logits, whole.logits, atol=1e-6)
        np.testing.assert_allclose(found.embedding, whole.embedding, atol=1e-6)
        assert found.attention is not None
        assert whole.attention is not None
        np.testing.assert_allclose(found.attention, whole.attention, atol=2e-3)  # float16
    flat, _ = toy.make_pack(7)
    pictures = Watched(network())
    infer(pictures, flat, np.arange(7), device=CPU, batch_size=7, attention=True)
    assert {count for count, _ in pictures.passes} == {7}  # pictures are never divided


def test_the_answer_is_the_same_with_and_without_gradients() -> None:
    """Bit by bit, so that networks with a map of their own keep what they answered."""
    pack, _ = toy.make_pack(5, (32, 32, 32))
    method = registry.get("dual_sampling")
    torch.manual_seed(0)
    config = registry.configure(method, {"depth": 10, "width": 4})
    net = method.build(config, registry.InputSpec("ct_volume", (32, 32, 32), ("cap", "covid19"))).eval()
    found = infer(net, pack, np.arange(5), device=CPU, batch_size=5, attention=True)
    image = torch.from_numpy(pack.data)[:, None].float().requires_grad_()
    output = net(image, torch.from_numpy(pack.masks & 1)[:, None].float())
    assert output.attention.requires_grad
    np.testing.assert_array_equal(found.logits[:, 1], output.logits.detach()[:, 0].numpy())
    np.testing.assert_array_equal(found.embedding, output.embedding.detach().numpy())
    heat = min_max(output.attention.detach())[:, 0].numpy().astype(np.float16)
    np.testing.assert_array_equal(found.attention, heat)


def test_a_single_logit_becomes_two_and_a_bare_network_has_no_map() -> None:
    class Bare(nn.Module):
        def forward(self, image: torch.Tensor, lung: torch.Tensor | None = None) -> Output:
            return Output(image.mean((1, 2, 3))[:, None])

    pack, _ = toy.make_pack(4)
    found = infer(Bare(), pack, np.arange(4), device=CPU, batch_size=4, attention=True)
    assert found.logits.shape == (4, 2)
    assert (found.logits[:, 0] == 0).all()
    assert found.attention is None
    np.testing.assert_array_equal(found.embedding, found.logits)


def test_monitors_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(60, 3)).astype(np.float32) * 3, rng.integers(0, 3, 60)
    p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    found = monitors.tune_metrics(logits, target)
    assert found["loss"] == pytest.approx(metrics.log_loss(target, p))
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(target == 2, p[:, 2]))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(target, p.argmax(1)))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(target, p.argmax(1), average="macro"))
    assert found["macro_sensitivity"] == pytest.approx(metrics.balanced_accuracy_score(target, p.argmax(1)))
    assert set(found) == set(monitors.CLASSIFIED) < set(monitors.MONITORS)


def test_auroc_of_ties_saturated_scores_and_one_class() -> None:
    sure = np.array([[0, 800], [0, 900], [0, 850], [0, 700]], np.float32)
    assert monitors.tune_metrics(sure, np.array([0, 1, 1, 0]))["auroc"] == 1
    assert monitors.tune_metrics(np.zeros((4, 2), np.float32), np.array([0, 1, 1, 0]))["auroc"] == 0.5
    assert np.isnan(monitors.tune_metrics(sure, np.ones(4, int))["auroc"])


def test_better_knows_directions_and_nan() -> None:
    assert monitors.better("auroc", 0.8, 0.7)
    assert not monitors.better("auroc", 0.7, 0.7)
    assert monitors.better("loss", 0.6, 0.7)
    assert monitors.better("auroc", 0.1, None)
    assert monitors.better("auroc", 0.1, float("nan"))
    assert not monitors.better("auroc", float("nan"), 0.1)


def test_mahalanobis_distance_finds_what_is_unlike_the_training_set() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 5))
    train, tune = ((rng.normal(size=(n, 5)) @ mixing + 3).astype(np.float32) for n in (4000, 1000))
    found = embedding.statistics(train, tune)
    far = embedding.distance(tune, found) > found["threshold"]
    assert float(far.float().mean()) == pytest.approx(0.01, abs=0.002)
    centred, precision = tune - train.mean(0), np.linalg.inv(np.cov(train.T))
    want = np.sqrt(np.einsum("ne,ef,nf->n", centred, precision, centred))
    np.testing.assert_allclose(embedding.distance(tune, found).numpy(), want, rtol=0.05)  # shrinkage is what differs
    assert bool((embedding.distance(np.full((1, 5), 60, np.float32), found) > found["threshold"]).all())


def test_statistics_of_few_samples_and_dead_units_stay_finite() -> None:
    train = np.random.default_rng(0).normal(size=(12, 40)).astype(np.float32)
    train[:, 10:20] = 0
    for embedded in (train, np.zeros((12, 40), np.float32)):
        found = embedding.statistics(embedded, embedded[:5])
        assert all(bool(torch.isfinite(v).all()) for v in found.values())


def test_wide_embeddings_keep_the_same_distances_in_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 60))
    train, tune = ((rng.normal(size=(n, 6)) @ mixing + rng.normal(size=(n, 60))).astype(np.float32) for n in (40, 30))
    whole = embedding.statistics(train, tune)
    monkeypatch.setattr(embedding, "WIDE", 50)
    found = embedding.statistics(train, tune)
    assert found.keys() == {"mean", "directions", "variances", "rest", "threshold"}
    assert found["directions"].shape == (40, 60)
    np.testing.assert_allclose(embedding.distance(tune, found), embedding.distance(tune, whole), rtol=1e-3)
    assert float(found["threshold"]) == pytest.approx(float(whole["threshold"]), rel=1e-3)
    for flat in (np.zeros((5, 60), np.float32), train[:1].repeat(5, 0)):
        assert all(bool(torch.isfinite(v).all()) for v in embedding.statistics(flat, flat).values())


def test_lung_area_range() -> None:
    pack, _ = toy.make_pack(6)
    low, high = embedding.lung_area_range(pack, np.arange(6)).tolist()
    assert low == high == pytest.approx(100 / 144)
    pack.index["has_lung"] = False
    assert embedding.lung_area_range(pack, np.arange(6)) is None


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "get", lambda name: toy.METHOD)
    description = {
        "method": "toy",
        "config": registry.completed(toy.METHOD, {}),
        "input": {"modality": "cxr", "shape": [12, 12], "classes": ["rest", "covid19"]},
    }
    restore.save_network(tmp_path, network().to(memory_format=torch.channels_last), description)
    return tmp_path


def test_a_saved_network_is_restored(saved: Path) -> None:
    pack, _ = toy.make_pack(4)
    restored, description = restore.load_network(saved)
    assert not restored.training
    assert description["input"]["classes"] == ["rest", "covid19"]
    first, second = (infer(n, pack, np.arange(4), device=CPU, batch_size=4).logits for n in (network(), restored))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("damage", ["weights", "no weights", "json", "config", "shape", "no json"])
def test_a_damaged_network_is_named_in_one_line(damage: str, saved: Path) -> None:
    weights, model = saved / "weights.safetensors", saved / "model.json"
    description = json.loads(model.read_text())
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "json":
        model.write_text("{")
    elif damage == "config":
        model.write_text(json.dumps({**description, "config": {"unheard": 1}}))
    elif damage == "shape":
        description["input"]["classes"] = ["a", "b", "covid19"]
        model.write_text(json.dumps(description))
    else:
        model.unlink()
    with pytest.raises(TrainingError) as caught:
        restore.load_network(saved)
    said = str(caught.value)
    assert "\n" not in said
    assert ("model.json" if damage in ("json", "config", "no json") else "weights.safetensors") in said
