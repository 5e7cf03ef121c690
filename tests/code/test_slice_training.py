"""Schedules, scales, flips and the second head of the slice segmenter; the ratio's error."""

import math

import numpy as np
import pytest
import torch

from chestflow.segmentation import slice_network
from chestflow.segmentation.infection_evidence import compare, evidence, ratio_error
from chestflow.segmentation.pseudo_label import Loop, Slices
from chestflow.segmentation.slice_network import Schooling, Shape
from chestflow.segmentation.training_loop import Course, rate
from tests.code.infection_cases import small_slices


def test_the_codes_schedule_falls_tenfold_each_epoch_from_the_50th() -> None:
    stated, code = Course(100, 1e-4, "step"), Course(100, 1e-4, "compounding")
    assert rate(stated, 49) == rate(code, 49) == pytest.approx(1e-4)
    assert rate(stated, 50) == rate(stated, 99) == pytest.approx(1e-5)
    assert rate(code, 50) == pytest.approx(1e-5)
    assert rate(code, 55) == pytest.approx(1e-10)
    assert rate(Course(10, 1.0, "cosine"), 1) == pytest.approx(1.0)
    assert rate(Course(10, 1.0), 10) == 1.0


def test_scales_are_multiples_of_32() -> None:
    assert [slice_network.scaled(352, scale) for scale in (0.75, 1, 1.25)] == [256, 352, 448]
    assert slice_network.scaled(64, 0.5) == 64


def test_flips_and_sizes_treat_pictures_masks_and_kinds_alike() -> None:
    values = torch.arange(4 * 64 * 64).reshape(4, 1, 64, 64)
    parts = [values.float(), values.float() / values.max(), values.long()]
    turned = slice_network.flipped(parts, torch.Generator().manual_seed(0))
    assert torch.equal(turned[0].long(), turned[2])
    assert not torch.equal(turned[0], parts[0])
    kinds = torch.randint(-1, 3, (2, 1, 64, 64))
    image, larger = slice_network.resized([torch.rand(2, 1, 64, 64), kinds], 96)
    assert image.shape == larger.shape == (2, 1, 96, 96)
    assert larger.dtype == torch.long
    assert set(larger.unique().tolist()) <= {-1, 0, 1, 2}


def trained(monkeypatch: pytest.MonkeyPatch, **settings: object) -> tuple[str, list[int], list[float]]:
    """A real Inf-Net after one epoch on one batch: digest, sides that it saw, and each step's largest gradient."""
    images = np.random.default_rng(3).integers(0, 90, (2, 64, 64)).astype(np.uint8)
    targets = np.zeros((2, 1, 64, 64), np.uint8)
    targets[:, :, 20:40, 16:44] = 255
    images[:, 20:40, 16:44] += 120
    sides, gradients, step = [], [], torch.optim.Adam.step

    def watched(self: torch.optim.Adam, *rest: object) -> None:
        values = (parameter.grad for group in self.param_groups for parameter in group["params"])
        gradients.append(max(float(value.abs().max()) for value in values))
        step(self, *rest)

    loop = Loop(
        Slices(images, targets), np.zeros((0, 64, 64), np.uint8), small_slices(lr=1e-3, flips=False, **settings),
        seed=0, threads=1,
    )  # fmt: skip
    loop.model.network.register_forward_pre_hook(lambda _, given: sides.append(given[0].shape[-1]))
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", watched)
        found = loop.run()
    return slice_network.digest(found.model.network.state_dict()), sides, gradients


def test_scales_clipping_and_weighting_come_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, sides, free = trained(monkeypatch, clip_value=None)
    assert sides == [64]
    assert free[0] > 1e-3
    _, sides, bounded = trained(monkeypatch, clip_value=1e-3, scales=[1.0, 1.5, 2.0])
    assert sides == [64, 96, 128]
    assert len(bounded) == 3, "each scale is a step of its own"
    assert all(value == pytest.approx(1e-3) for value in bounded)
    cancelled, _, other = trained(monkeypatch, clip_value=None, weighting="cancelled")
    assert cancelled != plain
    assert other != free
    assert trained(monkeypatch, clip_value=None)[0] == plain, "the same settings give the same weights"
    reduced, _, gradients = trained(monkeypatch, clip_value=None, amp="bf16")
    assert reduced != plain
    assert gradients == pytest.approx(free, rel=0.2)
    assert trained(monkeypatch, clip_value=None, amp="bf16")[0] == reduced


def test_kinds_of_lesion_train_the_second_head() -> None:
    model = slice_network.build(Shape("resnet18", 4, 64, 2), 0)
    before = {name: value.clone() for name, value in model.network.kinds.state_dict().items()}
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (2, 64, 64)).astype(np.uint8)
    kinds = np.zeros((2, 64, 64), np.int8)
    kinds[0, 10:30, 10:30], kinds[0, 40:50, 40:50], kinds[1] = 1, 2, -1
    targets = (kinds > 0)[:, None].astype(np.uint8) * np.uint8(255)
    said = []
    slice_network.train(
        model, images, targets, Course(1, 1e-3), Schooling(2, (1.0,)), kinds=kinds, seed=0, threads=1, section="x",
        log=lambda epoch, value: said.append(value),
    )  # fmt: skip
    assert math.isfinite(said[0])
    after = model.network.kinds.state_dict()
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    assert slice_network.probabilities(model, images).shape == (2, 1, 64, 64)


def test_ratio_error() -> None:
    found = ratio_error([0.1, 0.2, 0.3], [0.12, 0.2, 0.25])
    assert found["images"] == 3
    assert found["mae"] == pytest.approx(0.07 / 3)
    assert found["bias"] == pytest.approx(-0.01)
    assert found["worst"] == pytest.approx(0.05)
    assert found["rank"] == pytest.approx(1.0)
    assert math.isnan(ratio_error([], [])["mae"])
    with pytest.raises(ValueError, match="1 true ratios and 0"):
        ratio_error([0.1], [])


def test_evidence_is_per_image_then_per_patient_and_healthy_ones_stand_apart() -> None:
    truth = np.zeros((40, 40), bool)
    truth[10:20, 10:20] = True
    lung = np.zeros_like(truth)
    lung[5:35, 5:35] = True
    right, half = truth.astype(np.float32), truth.astype(np.float32)
    half[:, 15:] = 0
    nothing = np.zeros_like(truth)
    cases = [("1", "p", truth, right), ("2", "p", truth, half), ("3", "q", truth, right), ("4", "r", nothing, right)]
    measured = [
        compare((name, "a", patient), mask, found, 0.5, lung=lung, true_lung=lung)
        for name, patient, mask, found in cases
    ]
    said = evidence(measured)
    assert (said["images"], said["patients"]) == (3, 2)
    assert said["dice_by_patient"]["p"] == pytest.approx((1 + 2 / 3) / 2)
    assert said["figures"]["dice"]["value"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
    assert said["healthy"] == {"images": 1, "empty": 0, "marked_share": pytest.approx(100 / 1600)}
    assert said["ratio_error"]["images"] == 4
    assert said["ratio_error"]["worst"] == pytest.approx(100 / 900)
    assert evidence([])["figures"] == {}
