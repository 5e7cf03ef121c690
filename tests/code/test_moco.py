"""MoCo v2: the contrast and its queue, the views, which pictures it may see, and a training that can be killed."""

from __future__ import annotations

import io
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from chestflow.config_runs import Pretraining
from chestflow.errors import ConfigError, DataError
from chestflow.files import read_json, write_json, write_parquet
from chestflow.nn.backbones import Backbone
from chestflow.training import moco, pretraining
from chestflow.training.phases import apply_freezing
from chestflow.training.views import blur, random_view
from tests.model.own_networks import batch, images
from tests.toy import settings

SIDE, COUNT = 64, 12


def section(**changes: Any) -> Pretraining:
    small = {"backbone": "resnet18", "channels": 1, "batch": 4, "queue": 6, "epochs": 2, "key_groups": 2}
    return Pretraining(**({"cohort": "slices", "recipe": "small"} | small | changes))


def network(seed: int = 0, **changes: Any) -> moco.MoCo:
    torch.manual_seed(seed)
    return moco.MoCo(section(**changes))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def test_defaults_are_those_of_moco_v2() -> None:
    made = Pretraining(cohort="a", recipe="b")
    assert (made.momentum, made.temperature, made.lr, made.weight_decay) == (0.999, 0.2, 0.015, 1e-4)
    assert made.normalise == "selftrans"
    assert (made.epochs, made.batch, made.smallest_crop, made.backbone) == (200, 128, 0.2, "densenet169")


def test_encoders_start_equal_and_the_key_follows_by_its_momentum() -> None:
    built = network(momentum=0.75)
    first = {k: v.clone() for k, v in built.key.state_dict().items()}
    assert all(torch.equal(v, built.query.state_dict()[k]) for k, v in first.items())
    with torch.no_grad():
        for parameter in built.query.parameters():
            parameter.add_(1.0)
    built.follow()
    for name, parameter in built.key.named_parameters():
        torch.testing.assert_close(parameter, first[name] + 0.25)


def test_the_contrast_is_the_softmax_over_own_key_and_queue() -> None:
    built = network(skip_own=False, temperature=0.5)
    queries, keys = unit(torch.randn(3, 128)), unit(torch.randn(3, 128))
    logits = built.compare(queries, keys, torch.arange(3))
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits[:, 0], (queries * keys).sum(1) * 2)
    torch.testing.assert_close(logits[:, 1:], queries @ built.queue.t() * 2)


def test_a_queue_of_the_own_key_alone_gives_log_of_two_or_none() -> None:
    """The old key of the query's picture counts as a negative in MoCo, and not where it is to be skipped."""
    for skip, expected in ((False, math.log(2)), (True, 0.0)):
        built = network(queue=1, skip_own=skip)
        key = unit(torch.randn(1, 128))
        built.remember(key, torch.tensor([5]))
        logits = built.compare(key, key, torch.tensor([5]))
        found = torch.nn.functional.cross_entropy(logits, torch.zeros(1, dtype=torch.int64))
        assert float(found) == pytest.approx(expected, abs=1e-6)


def test_the_queue_keeps_the_newest_keys_in_a_ring() -> None:
    built = network()  # of 6
    keys = unit(torch.randn(13, 128))
    for start in (0, 4, 8):
        built.remember(keys[start : start + 4], torch.arange(start, start + 4))
    assert int(built.place) == 0
    assert sorted(built.rows.tolist()) == [6, 7, 8, 9, 10, 11]
    for place, row in enumerate(built.rows.tolist()):
        assert torch.equal(built.queue[place], keys[row])
    built.remember(keys[:13], torch.arange(13))  # more than it holds
    assert sorted(built.rows.tolist()) == list(range(7, 13))


def test_keys_come_in_the_order_of_their_pictures_whatever_the_shuffling() -> None:
    built = network().eval()  # without batch statistics a key is its picture's own
    views = built.input(images(5))
    alone = built.key(views)
    for seed in range(3):
        torch.testing.assert_close(built.keys(views, generator(seed)), alone, atol=1e-5, rtol=1e-4)


def test_keys_are_normalised_in_parts_of_their_own() -> None:
    """With one part the order changes nothing; with two, other neighbours give other statistics."""
    views = network().input(images(8))
    keys = {}
    for groups in (1, 2):
        for seed in (0, 1):
            keys[groups, seed] = network(key_groups=groups).train().keys(views, generator(seed))
    torch.testing.assert_close(keys[1, 0], keys[1, 1], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(keys[2, 0], keys[2, 1], atol=1e-2)


def test_gradients_reach_the_query_alone_and_are_finite() -> None:
    built, phase = network(), moco.phase(section())
    trained = apply_freezing(built, phase)
    parts = phase.loss(built, batch(4), generator())
    parts["loss"].backward()
    assert {id(p) for p in trained} == {id(p) for p in built.query.parameters()}
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
    assert all(p.grad is None for p in built.key.parameters())
    assert built.key.training  # its batch norm uses the batch's statistics
    assert 0 <= float(parts["found"]) <= 1
    assert sorted(built.rows.tolist()) == [-1, -1, 0, 1, 2, 3]


@pytest.mark.parametrize("case", ["two pictures", "black", "queue of one", "mixed precision"])
def test_the_loss_stays_finite(case: str) -> None:
    sample = batch(2 if case == "two pictures" else 4)
    if case == "black":
        sample = replace(sample, image=torch.zeros_like(sample.image))
    built = network(queue=1 if case == "queue of one" else 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "mixed precision"):
        loss = moco.contrast(0.2)(built, sample, generator())["loss"]
    loss.backward()
    assert loss.dtype == built.queue.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in built.query.parameters())


def test_it_learns_the_keys_of_eight_pictures_by_heart() -> None:
    """Each against the other seven, in views that stay the same; log 8 = 2.08 is not to know one from another."""
    coarse = torch.rand(8, 1, 4, 4, generator=generator(1)) * 255
    sample = replace(batch(8), image=torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear"))
    built, phase = network(queue=8, key_groups=1), moco.phase(section(lr=0.1))
    optimiser = phase.optimiser(apply_freezing(built, phase))
    losses = []
    for _ in range(8):
        parts = phase.loss(built, sample, generator(5))
        optimiser.zero_grad()
        parts["loss"].backward()
        optimiser.step()
        losses.append(float(parts["loss"].detach()))
    assert losses[1] > 1.8  # the first batch meets a queue of random vectors
    assert losses[-1] < 1.2
    assert float(parts["found"]) == 1.0


def test_views_are_of_the_same_range_and_drawn_for_each_picture() -> None:
    view, sample = random_view(), images(6, 48)
    first, again, other = (view(sample, generator(seed)) for seed in (1, 1, 2))
    assert first.shape == sample.shape
    assert float(first.min()) >= 0
    assert float(first.max()) <= 255
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    same = view(sample[:1].expand(6, -1, -1, -1), generator())
    assert len({round(float(one.mean()), 3) for one in same}) == 6
    torch.testing.assert_close(
        random_view(1.0)(torch.full((4, 1, 32, 32), 0.0), generator()), torch.zeros(4, 1, 32, 32)
    )
    with pytest.raises(ValueError, match="smallest_crop"):
        random_view(0.0)


def test_blur_is_each_pictures_own_and_keeps_its_mean() -> None:
    point = torch.zeros(3, 1, 21, 21)
    point[:, 0, 10, 10] = 100.0
    found = blur(point, torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(found[0], point[0])
    assert float(found[1].max()) > float(found[2].max()) > 0
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.full((3,), 100.0), rtol=1e-3, atol=0.1)
    offset = torch.arange(21.0) - 10
    spread = (found[1, 0].sum(0) * offset**2).sum() / 100
    assert float(spread) == pytest.approx(1.0, abs=0.2)
    torch.testing.assert_close(blur(torch.full((1, 1, 9, 9), 7.0), torch.tensor([2.0])), torch.full((1, 1, 9, 9), 7.0))


def write_outs(out: Path, roles: dict[int, list[str]]) -> None:
    """A pack of 12 pictures and the split of each fold, by the pictures' places."""
    pack = out / "packs" / "small"
    pack.mkdir(parents=True)
    ids = [f"slice-{i:02d}" for i in range(COUNT)]
    data = np.random.default_rng(0).integers(0, 255, (COUNT, SIDE, SIDE)).astype(np.uint8)
    np.save(pack / "data.npy", data)
    np.save(pack / "masks.npy", np.zeros_like(data))
    index = {"row": range(COUNT), "image_id": ids, "has_lung": False, "has_infection": False}
    write_parquet(pack / "index.parquet", pd.DataFrame(index))
    write_json(pack / "recipe.json", {"modality": "ct_slice", "size": [SIDE, SIDE]})
    rows = [
        {"cohort": "slices", "fold": fold, "image_id": image, "group_id": image, "role": role}
        for fold, dealt in roles.items()
        for image, role in zip(ids, dealt, strict=True)
    ]
    write_parquet(out / "splits.parquet", pd.DataFrame(rows))


ONE = {0: ["train"] * 6 + ["unlabelled"] * 2 + ["tune", "test", "external", "excluded"]}


def params(changes: dict[str, Any] | None = None, folds: tuple[int, ...] = (0,)) -> Any:
    made = section(backbone="squeezenet1_1", **(changes or {}))
    engine = settings()
    return SimpleNamespace(profile="toy", seed=1, folds=list(folds), engine=engine, pretraining={"small": made})


def test_only_pictures_that_every_fold_trains_on_are_seen(tmp_path: Path) -> None:
    second = ["test", "tune"] + ["train"] * 4 + ["unlabelled"] * 2 + ["train"] * 2 + ["external", "masks_only"]
    write_outs(tmp_path, {**ONE, 1: second})
    first = pretraining.allowed(params(), "slices", tmp_path)
    assert first == [f"slice-{i:02d}" for i in range(8)]
    assert pretraining.allowed(params(folds=(0, 1)), "slices", tmp_path) == first[2:]
    with pytest.raises(DataError, match="no fold 3"):
        pretraining.allowed(params(folds=(0, 3)), "slices", tmp_path)


def test_no_picture_for_training_in_every_fold_is_said(tmp_path: Path) -> None:
    write_outs(tmp_path, {0: ["train"] * 6 + ["test"] * 6, 1: ["test"] * 6 + ["train"] * 6})
    with pytest.raises(DataError, match=r"0 images .* official test set"):
        pretraining.allowed(params(folds=(0, 1)), "slices", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"), [({"backbone": "resnet17"}, "resnet17.*choose one of"), ({}, "at least 75 pixels")]
)
def test_what_cannot_be_trained_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_outs(tmp_path, ONE)
    made = params()
    made.pretraining["small"] = section(**({"backbone": "inception_v3"} | changes))
    with pytest.raises(ConfigError, match=message):
        pretraining.pretrain(made, "small", tmp_path, tmp_path / "c")


def test_it_refuses_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chestflow.training import distributed

    write_outs(tmp_path, ONE)
    monkeypatch.setattr(distributed, "enter", lambda kind: distributed.World(0, 2))
    with pytest.raises(ConfigError, match="without torchrun"):
        pretraining.pretrain(params(), "small", tmp_path, tmp_path / "c")


KILLED = """
import os, signal, sys
from pathlib import Path
from chestflow.training import checkpoints, pretraining
from tests.code.test_moco import params
save, count = checkpoints.save, 0
def dying(*given):
    global count
    save(*given)
    count += 1
    if count == 2:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save = dying
pretraining.pretrain(params({"epochs": 3}), "small", Path(sys.argv[1]), Path(sys.argv[1]) / ".checkpoints")
"""


@pytest.fixture
def untouched() -> Iterator[None]:
    """Put back what a training pins for its process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("untouched")
def test_killed_it_goes_on_and_writes_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for root in (whole, broken):
        write_outs(root, ONE)
    made = params({"epochs": 3})
    heard: list[tuple[int, float]] = []
    pretraining.pretrain(
        made, "small", whole, whole / ".checkpoints", lambda values, epoch: heard.append((epoch, values["train/loss"]))
    )
    assert [epoch for epoch, _ in heard] == [1, 2, 3]
    assert all(loss > 0 for _, loss in heard)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(broken)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (broken / "pretrain").exists()
    capsys.readouterr()
    pretraining.pretrain(made, "small", broken, broken / ".checkpoints")
    said = capsys.readouterr().err
    assert "contrast 3/3" in said
    assert "contrast 2/3" not in said  # it went on and did not start anew
    for name in ("weights.safetensors", "history.csv", "pretrain.json"):
        assert (whole / "pretrain/small" / name).read_bytes() == (broken / "pretrain/small" / name).read_bytes()
    assert not list((broken / ".checkpoints").rglob("*.pt"))
    described = read_json(whole / "pretrain/small/pretrain.json")
    assert (described["images"], described["folds"], described["settings"]["backbone"]) == (8, [0], "squeezenet1_1")
    backbone = Backbone("squeezenet1_1", 1)
    first = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.load_state_dict(load_file(whole / "pretrain/small/weights.safetensors"))
    assert not all(torch.equal(v, first[k]) for k, v in backbone.state_dict().items())
    history = pd.read_csv(io.StringIO((whole / "pretrain/small/history.csv").read_text()))
    assert list(history["epoch"]) == [1, 2, 3]
    assert history["lr"].is_monotonic_decreasing
