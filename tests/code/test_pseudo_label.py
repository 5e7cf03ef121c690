"""Algorithm 1: rounds, order, what joins the training, no scaling by range, and going on after a kill."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chestflow.config_segmentation import InfectionSlices, PseudoLabels
from chestflow.segmentation import pseudo_label, slice_network
from chestflow.segmentation.pseudo_label import Labelled, Loop, Slices, confidence, draw_rounds, pseudo_targets
from tests.code.infection_cases import stand_in

SIZE = 64


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


def pictures(count: int, seed: int) -> Slices:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 90, (count, SIZE, SIZE)).astype(np.uint8)
    targets = np.zeros((count, 1, SIZE, SIZE), np.uint8)
    for number in range(count):
        y, x = rng.integers(0, 40, 2)
        images[number, y : y + 20, x : x + 20] += 120
        targets[number, 0, y : y + 20, x : x + 20] = 255
    return Slices(images, targets)


def settings(**pseudo: object) -> InfectionSlices:
    own = {"sets": ["a"], "chunk": 4, "epochs": 2, "batch_size": 4, "lr": 1e-2, **pseudo}
    return InfectionSlices(
        sets=["a"], size=SIZE, scales=[1.0], epochs=8, batch_size=4, lr=3e-2, pseudo=PseudoLabels(**own)
    )


def run(unlabelled: int, folder: Path | None = None, **more: object) -> tuple[Loop, Labelled]:
    loop = Loop(pictures(6, 0), pictures(unlabelled, 1).images, settings(**more), seed=3, threads=1, folder=folder)
    return loop, loop.run()


@given(count=st.integers(0, 500), chunk=st.integers(1, 120), seed=st.integers(0, 5))
def test_every_slice_is_drawn_once_in_as_many_rounds_as_it_takes(count: int, chunk: int, seed: int) -> None:
    rounds = draw_rounds(count, chunk, seed)
    assert len(rounds) == -(-count // chunk)
    assert sorted(np.concatenate([*rounds, np.zeros(0, np.int64)]).tolist()) == list(range(count))
    assert all(len(drawn) == chunk for drawn in rounds[:-1])
    assert [drawn.tolist() for drawn in draw_rounds(count, chunk, seed)] == [drawn.tolist() for drawn in rounds]


def test_the_papers_numbers_of_rounds() -> None:
    assert len(draw_rounds(0, 100, 0)) == 0
    assert len(draw_rounds(100, 100, 0)) == 1
    assert [len(drawn) for drawn in draw_rounds(1600 + 746, 100, 0)] == [100] * 23 + [46]
    assert len(draw_rounds(1600, 5, 0)) == 320
    assert draw_rounds(50, 10, 0)[0].tolist() != draw_rounds(50, 10, 1)[0].tolist()


def test_training_sets_grow_and_the_last_round_is_not_trained_on() -> None:
    _, found = run(10)
    assert [entry["trained_on"] for entry in found.rounds] == [6, 10, 14]
    assert [entry["labelled"] for entry in found.rounds] == [4, 4, 2]
    assert sorted(found.round_of.tolist()) == [1] * 4 + [2] * 4 + [3] * 2
    assert len({entry["model"] for entry in found.rounds}) == 3
    assert found.rounds[-1]["model"] == slice_network.digest(found.model.network.state_dict())
    assert all(sum(entry["confidence"]) == entry["labelled"] * SIZE * SIZE for entry in found.rounds)


def test_rounds_start_from_the_weights_of_the_one_before() -> None:
    _, once = run(4)
    _, frozen = run(8, epochs=1, lr=1e-30)
    for name, value in once.model.network.named_parameters():
        assert torch.allclose(value, dict(frozen.model.network.named_parameters())[name]), name


def test_without_unlabelled_slices_it_trains_on_the_doctors_alone() -> None:
    _, found = run(0)
    assert found.rounds == []
    assert found.targets.shape == (0, 1, SIZE, SIZE)
    _, one = run(4)
    assert len(one.rounds) == 1
    for name, value in found.model.network.state_dict().items():
        assert torch.equal(value, one.model.network.state_dict()[name])


def test_pseudo_labels_are_masks_at_one_half_and_never_scaled_by_their_range() -> None:
    weak = np.full((1, 1, 8, 8), 0.001, np.float32)
    weak[0, 0, 3, 3] = 0.01  # the highest of a healthy slice
    assert not pseudo_targets(weak, 0.5, soft=False).any()
    assert pseudo_targets(weak, 0.5, soft=True).max() == 3
    strong = np.array([0.4, 0.5, 0.51, 1.0], np.float32)
    assert pseudo_targets(strong, 0.5, soft=False).tolist() == [0, 0, 255, 255]
    assert pseudo_targets(strong, 0.5, soft=True).tolist() == [102, 128, 130, 255]


def test_confidence_is_the_larger_of_p_and_what_is_left() -> None:
    counts = confidence(np.array([0.0, 1.0, 0.5, 0.52, 0.3], np.float32))
    assert counts[-1] == 2
    assert counts[0] == 2
    assert sum(counts) == 5


def test_soft_targets_train_another_network() -> None:
    _, hard = run(8)
    _, soft = run(8, soft_targets=True)
    assert set(np.unique(hard.targets)) <= {0, 255}
    assert len(np.unique(soft.targets)) > 10
    assert hard.rounds[0]["model"] == soft.rounds[0]["model"]
    assert hard.rounds[1]["model"] != soft.rounds[1]["model"]


def test_the_codes_final_stage_trains_anew_on_pseudo_labels_and_then_on_the_doctors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []
    train = slice_network.train

    def seen(model: slice_network.SliceNetwork, images: np.ndarray, *rest: object, **more: object) -> None:
        sizes.append((len(images), slice_network.digest(model.network.state_dict())))
        train(model, images, *rest, **more)

    monkeypatch.setattr(slice_network, "train", seen)
    run(10, final="pretrain_finetune")
    assert [size for size, _ in sizes] == [6, 10, 14, 10, 6]
    assert sizes[3][1] == sizes[0][1], "the pretraining begins from new weights"
    assert sizes[4][1] not in {sizes[0][1], sizes[2][1]}


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 8, 9, 12, 15, 20])
def test_killed_at_any_epoch_and_started_again_it_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    _, whole = run(10, final="pretrain_finetune")
    save, saves = pseudo_label.checkpoints.save, []

    def counted(*arguments: object) -> None:
        save(*arguments)
        saves.append(1)
        if len(saves) == after:
            raise Killed

    monkeypatch.setattr(pseudo_label.checkpoints, "save", counted)
    with pytest.raises(Killed):
        run(10, tmp_path / "k" / "infection" / "0", final="pretrain_finetune")
    loop, later = run(10, tmp_path / "k" / "infection" / "0", final="pretrain_finetune")
    assert np.array_equal(later.targets, whole.targets)
    assert np.array_equal(later.round_of, whole.round_of)
    assert later.rounds == whole.rounds
    for name, value in whole.model.network.state_dict().items():
        assert torch.equal(value, later.model.network.state_dict()[name]), name
    loop.done()
    assert not (tmp_path / "k").exists()


def test_killed_between_a_rounds_labels_and_its_state_it_labels_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = run(10)
    folder = tmp_path / "k" / "infection" / "0"
    label = Loop._label

    def dying(self: Loop, step: int) -> None:
        label(self, step)
        if step == 1:
            raise Killed

    monkeypatch.setattr(Loop, "_label", dying)
    with pytest.raises(Killed):
        run(10, folder)
    monkeypatch.setattr(Loop, "_label", label)
    assert len(list(folder.glob("round-*.npy"))) == 2
    _, later = run(10, folder)
    assert np.array_equal(later.targets, whole.targets)
    assert later.rounds == whole.rounds


def test_a_lost_rounds_file_starts_anew_with_the_same_result(tmp_path: Path) -> None:
    folder = tmp_path / "k" / "infection" / "0"
    _, whole = run(10, folder)
    (folder / "round-0001.npy").unlink()
    _, later = run(10, folder)
    assert later.rounds == whole.rounds
    assert np.array_equal(later.targets, whole.targets)


def test_rounds_are_logged_with_the_dice_on_held_slices() -> None:
    said = []
    loop = Loop(
        pictures(6, 0), pictures(8, 1).images, settings(), seed=3, threads=1,
        measure=lambda model: {"dice": 0.5}, log=lambda what, figures, step: said.append((what, figures, step)),
    )  # fmt: skip
    found = loop.run()
    assert [entry["held"] for entry in found.rounds] == [{"dice": 0.5}] * 2
    assert [entry for entry in said if entry[0] == "pseudo-label round"] == [
        ("pseudo-label round", {"dice": 0.5}, 1), ("pseudo-label round", {"dice": 0.5}, 2),
    ]  # fmt: skip
    assert any(what == "training 1: round" for what, _, _ in said)
