"""AC-CovidNet: its counts, its two phases really run, its ablations, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from chestflow.errors import ConfigError
from chestflow.methods import ac_covidnet, registry
from chestflow.methods.ac_covidnet import METHOD
from chestflow.methods.registry import InputSpec
from chestflow.training import engine, restore
from chestflow.training.inference import infer
from chestflow.training.monitors import centre_metrics
from chestflow.training.phases import Batch
from tests.model.comparators import THREE, batch, generator, network, parameters, spec, train, without_gradient

TINY: dict[str, Any] = {"widths": [4, 6, 8, 10], "encoded": 16, "projection_hidden": 12, "projected": 8, "hidden": 8}
QUICK: dict[str, Any] = {**TINY, "batch_size": 12, "lr": 0.003, "epochs": 2, "classifier_epochs": 2, "norm": "batch"}


class Pictures:
    """Twelve images a class: noise with a bright square whose place is the class."""

    def __init__(self, classes: int = 3, side: int = 32) -> None:
        rng = np.random.default_rng(0)
        self.target = np.repeat(np.arange(classes), 12)
        self.data = rng.integers(0, 60, (len(self.target), side, side)).astype(np.uint8)
        for image, c in zip(self.data, self.target, strict=True):
            image[4 + 8 * c : 12 + 8 * c, 4:28] += 150
        n = len(self.target)
        flags = {"has_lung": False, "has_infection": False}
        self.index = pd.DataFrame({"row": range(n), "image_id": [f"toy-{i}" for i in range(n)], **flags})
        self.masks, self.has_masks, self.recipe = None, False, {"modality": "cxr"}

    def gather(self, rows: Any) -> tuple[np.ndarray, None]:
        return self.data[np.asarray(rows)], None

    def table(self, start: int) -> pd.DataFrame:
        rows = np.arange(len(self.target))[start::2]
        return pd.DataFrame({"row": rows, "target": self.target[rows], "ratio": np.nan})


SETTINGS = SimpleNamespace(device="cpu", amp="off", threads=1, checkpoint_every=None)


def fitted(folder: Path, phases: int = 2, log: Any = None, **values: Any) -> tuple[torch.nn.Module, Any, Any]:
    config = registry.configure(METHOD, {**QUICK, **values})
    pictures = Pictures()
    torch.manual_seed(0)
    built = METHOD.build(config, InputSpec("cxr", (32, 32), THREE))
    data = engine.Data(pictures, pictures.table(0), pictures.table(1))  # type: ignore[arg-type]
    result = engine.fit(built, METHOD.phases(config)[:phases], data, SETTINGS, seed=1, folder=folder, log=log)
    return result.network, result, config


def test_parameters_at_480_pixels_are_102_million() -> None:
    config = registry.configure(METHOD, {"contrastive": False})
    with torch.device("meta"):
        built = METHOD.build(config, spec(480, THREE))
    assert parameters(built) == 102_017_767


def test_at_224_pixels_it_answers_too() -> None:
    with torch.device("meta"):
        built = METHOD.build(registry.configure(METHOD, {}), spec(224, THREE))
    output = built(torch.zeros(2, 1, 224, 224, device="meta"))
    assert output.logits.shape == (2, 3)
    assert output.embedding.shape == (2, 1024)
    assert output.projection.shape == (2, 128)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_it_returns(channels: int) -> None:
    built = network(METHOD, 64, THREE, **TINY)
    output = built(torch.rand(4, channels, 64, 64) * 255)
    assert output.features.shape == (4, 10, 2, 2)
    assert output.embedding.min() >= 0
    assert torch.allclose(output.projection.norm(dim=1), torch.ones(4), atol=1e-5)
    assert torch.allclose(output.logits.softmax(1).sum(1), torch.ones(4))


def first_loss(**values: Any) -> float:
    built = network(METHOD, 96, THREE, **values)
    return float(torch.nn.functional.cross_entropy(built(batch(6, 96).image).logits, torch.arange(6) % 3).detach())


@pytest.mark.parametrize("values", [{}, {"norm": "batch"}, {"gates": False}, {"final_gate": "residual"}])
def test_the_full_network_starts_near_uniform_answers(values: dict[str, Any]) -> None:
    assert first_loss(contrastive=False, **values) == pytest.approx(np.log(3), abs=0.2)


def test_at_full_strength_its_sums_drown_the_answer() -> None:
    assert first_loss(contrastive=False, block_gain=1.0) > 5


def test_the_encoder_is_bit_identical_after_the_second_phase(tmp_path: Path) -> None:
    first, _, _ = fitted(tmp_path / "a", phases=1)
    before = {k: v.clone() for k, v in first.state_dict().items() if k.startswith(("encoder.", "input."))}
    both, result, _ = fitted(tmp_path / "b")
    after = both.state_dict()
    assert any("running_mean" in k for k in before)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(k.startswith("projection") for k in after)
    assert any(k.startswith("projection") for k in first.state_dict())
    moved = [k for k in after if k.startswith("classifier") and not torch.equal(after[k], first.state_dict()[k])]
    assert moved
    assert [row["phase"] for row in result.epochs] == ["contrast"] * 2 + ["classify"] * 2
    assert "tune_centre_sensitivity" in result.epochs[0]
    assert "tune_macro_sensitivity" in result.epochs[-1]


class Halt:
    """A log that ends the training when it hears of its n-th epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def metrics(self, values: dict[str, float], step: int) -> None:
        if step == self.epoch:
            raise InterruptedError


@pytest.mark.parametrize("epoch", [2, 3, 4])
def test_an_interruption_in_either_phase_changes_nothing(epoch: int, tmp_path: Path) -> None:
    whole, told, _ = fitted(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        fitted(tmp_path / "halted", log=Halt(epoch))
    again, retold, _ = fitted(tmp_path / "halted")
    state = again.state_dict()
    assert state.keys() == whole.state_dict().keys()
    assert all(torch.equal(state[k], v) for k, v in whole.state_dict().items())
    assert retold.best == told.best
    pd.testing.assert_frame_equal(pd.DataFrame(retold.epochs), pd.DataFrame(told.epochs))


def test_it_learns_the_pictures_through_both_phases(tmp_path: Path) -> None:
    built, result, _ = fitted(tmp_path, epochs=15, classifier_epochs=20, lr=0.006)
    pictures = Pictures()
    rows = pictures.table(1)
    found = infer(built, pictures, rows["row"].to_numpy(), device=torch.device("cpu"), batch_size=9)  # type: ignore[arg-type]
    assert (found.logits.argmax(1) == rows["target"]).mean() > 0.8
    assert result.epochs[14]["train_loss"] < result.epochs[0]["train_loss"]


def test_what_is_saved_is_built_again_without_the_projection(tmp_path: Path) -> None:
    built, _, config = fitted(tmp_path / "checkpoints")
    description = {
        "method": "ac_covidnet",
        "config": registry.completed(METHOD, QUICK),
        "input": {"modality": "cxr", "shape": [32, 32], "classes": list(THREE)},
        "dropped": [name for phase in METHOD.phases(config) for name in phase.drops],
    }
    restore.save_network(tmp_path, built, description)
    again, _ = restore.load_network(tmp_path)
    x = torch.rand(2, 1, 32, 32) * 255
    # the trained one keeps its tensors channels last, which sums in another order
    assert torch.allclose(again(x).logits, built.eval()(x).logits, atol=1e-5)
    assert again(x).projection is None


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"gates": False, "contrastive": False}, ["classify"]),
        ({"gates": True, "contrastive": False}, ["classify"]),
        ({"gates": False, "contrastive": True}, ["contrast", "classify"]),
        ({"gates": True, "contrastive": True}, ["contrast", "classify"]),
    ],
)
def test_the_four_rows_of_the_ablation_are_configurations(values: dict[str, bool], names: list[str]) -> None:
    config = registry.configure(METHOD, {**TINY, **values})
    built = METHOD.build(config, spec(64, THREE))
    assert [phase.name for phase in METHOD.phases(config)] == names
    assert any("gate" in name for name, _ in built.named_parameters()) is values["gates"]
    assert (built.projection is not None) is values["contrastive"]
    assert METHOD.phases(config)[-1].trains == (("classifier",) if values["contrastive"] else ())


@pytest.mark.parametrize("values", [{"contrastive": False}, {"contrastive": False, "gates": False}, {}])
def test_gradients_reach_everything_that_trains(values: dict[str, bool]) -> None:
    given = {**TINY, "widths": [16, 16, 16, 16], "encoded": 64, "batch_size": 8, "norm": "batch", **values}
    built = network(METHOD, 96, **given)
    assert not without_gradient(METHOD, built, 96, **given, loss="npairs")


def test_cross_entropy_alone_overfits_eight_images() -> None:
    values = {**TINY, "contrastive": False, "lr": 0.003, "norm": "batch"}
    built = network(METHOD, 64, **values)
    losses = train(METHOD, built, 80, batch(), **values)
    assert losses[-1] < 0.05


def test_two_views_are_different_pictures_of_one_class() -> None:
    values = {**TINY, "views": 2, "augment": True}
    config = registry.configure(METHOD, values)
    first = METHOD.phases(config)[0]
    assert first.augment is None  # the loss itself makes both views
    seen: list[torch.Tensor] = []
    built = network(METHOD, 64, THREE, **values)
    built.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    loss = first.loss(built, batch(6), generator())["loss"]
    assert torch.isfinite(loss)
    assert seen[0].shape[0] == 12
    assert not torch.equal(seen[0][:6], seen[0][6:])


def test_both_losses_and_the_papers_sum_run() -> None:
    given = batch(6)
    found = {}
    for name, values in {
        "mean": {}, "sum": {"reduction": "sum"}, "npairs": {"loss": "npairs"}, "relu": {"projection": "linear_relu"}
    }.items():  # fmt: skip
        config = registry.configure(METHOD, {**TINY, **values})
        built = network(METHOD, 64, **{**TINY, **values})
        found[name] = float(METHOD.phases(config)[0].loss(built, given, generator())["loss"].detach())
        assert built(given.image).projection.min() >= (0 if name == "relu" else -1)
    assert found["sum"] == pytest.approx(6 * found["mean"], rel=1e-4)
    assert found["npairs"] != pytest.approx(found["mean"], rel=1e-3)


def test_a_contrastive_batch_holds_two_of_every_class() -> None:
    config = registry.configure(METHOD, TINY)
    table = pd.DataFrame({"target": [0] * 60 + [1] * 40 + [2] * 3})
    for chosen in METHOD.phases(config)[0].sampler(table, 6, generator()):
        assert np.bincount(table["target"].to_numpy()[chosen], minlength=3).tolist() == [2, 2, 2]


def test_centre_metrics_leave_the_sample_itself_out() -> None:
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], dtype=np.float32)
    assert centre_metrics(rows, np.array([0, 0, 1, 1])) == {"centre_sensitivity": 1.0}
    assert centre_metrics(rows, np.array([0, 1, 0, 1]))["centre_sensitivity"] == 0.0
    assert np.isnan(centre_metrics(rows, np.array([0, 1, 2, 3]))["centre_sensitivity"])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"depths": [3, 4]}, "one number above 0 for each stage"),
        ({"depths": [1, 4, 6, 3]}, "at least two blocks"),
        ({"temperature": 0.0}, "temperature"),
        ({"views": 2}, "augment: true"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"gate_inner": 0.0}, "gate_inner"),
        ({"block_gain": 0.0}, "gain is 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"gate_reading": "both"}, "choose one of"),
        ({"nonsense": 1}, "unknown"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        METHOD.phases(registry.configure(METHOD, values))


def test_inputs_that_cannot_work_are_refused_before_training() -> None:
    config = registry.configure(METHOD, {**TINY, "batch_size": 5})
    with pytest.raises(ConfigError, match="without a pair"):
        METHOD.build(config, spec(64, THREE))
    with pytest.raises(ConfigError, match="at least 32 pixels"):
        METHOD.build(registry.configure(METHOD, TINY), spec(31, THREE))
    with pytest.raises(ConfigError, match="ct_volume"):
        METHOD.build(registry.configure(METHOD, TINY), InputSpec("ct_volume", (8, 64, 64), THREE))


def test_the_deviations_from_the_paper_are_found() -> None:
    found = {row["name"] for row in registry.deviations(METHOD, registry.completed(METHOD, {}))}
    assert {"gate_reading", "reduction"} <= found
    literal = {"gate_reading": "add", "reduction": "sum"}
    assert not registry.deviations(METHOD, registry.completed(METHOD, literal))


def test_a_batch_of_one_class_gives_a_finite_loss() -> None:
    given: Batch = batch(4)
    given.target = torch.tensor([0, 1, 2, 3])
    config = registry.configure(METHOD, TINY)
    built = network(METHOD, 64, THREE, **TINY)
    loss = ac_covidnet.contrastive_loss(config, None)(built, given, generator())["loss"]
    assert float(loss.detach()) == 0.0
