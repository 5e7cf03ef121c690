"""The multi-knowledge network: widths, branches, stages that leave the earlier ones alone, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from chestflow.errors import ConfigError, DataError, TrainingError
from chestflow.imaging.cam import grad_cam
from chestflow.methods import registry
from chestflow.methods.registry import InputSpec
from chestflow.nn.knowledge_network import BRANCHES
from chestflow.nn.output import Output, class_logits
from chestflow.training import engine, restore
from chestflow.training.knowledge_loss import branch_loss, loss_of
from chestflow.training.knowledge_memory import Memory
from chestflow.training.phases import Batch, apply_freezing, respond
from chestflow.training.used_network import rebuilt
from tests.model.knowledge_slices import METHOD, SETTINGS, SIDE, SMALL, build, make_pack, slices, spec, table, used


def batch(count: int = 6, seed: int = 0) -> Batch:
    image, infection = slices(count, seed)
    return Batch(
        image=image,
        target=torch.arange(count) % 2,
        lung=None,
        infection=infection,
        has_infection=torch.ones(count, dtype=torch.bool),
        ratio=torch.full((count,), float("nan")),
        rows=torch.arange(count),
    )


def fitted(folder: Path, phases: int | None = None, log: Any = None, uses: Any = None, **values: Any) -> Any:
    config = registry.configure(METHOD, {**SMALL, **values})
    pack, target = make_pack()
    torch.manual_seed(0)
    network = METHOD.build(config, spec(uses=uses))
    data = engine.Data(pack, table(range(16), target), table(range(16, 24), target))
    if isinstance(log, Watch):
        log.network = network
    found = engine.fit(network, METHOD.phases(config)[:phases], data, SETTINGS, seed=1, folder=folder, log=log)
    torch.use_deterministic_algorithms(False)
    return found


def state(network: torch.nn.Module, *prefixes: str) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items() if k.startswith(prefixes)}


@pytest.mark.parametrize(
    ("backbone", "width", "parameters"),
    [
        ("densenet169", 1664, 37_468_420),
        ("resnet50", 2048, 70_542_532),
        ("resnet18", 512, 33_534_148),
        ("vgg16", 512, 44_148_676),
        ("efficientnet_b0", 1280, 12_034_168),
    ],
)
def test_widths_of_pools_and_heads_and_parameters(backbone: str, width: int, parameters: int) -> None:
    with torch.device("meta"):
        network = METHOD.build(registry.configure(METHOD, {"backbone": backbone}), spec(224))
    heads = {name: network.branch(name).head.in_features for name in BRANCHES}
    assert heads == {"global": width, "heat": width, "infected": 3 * width, "fusion": 4 * width}
    children = {name for name, _ in network.named_children()}
    assert children == {"input", "global_branch", "heat", "infected", "fusion"}
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("normalise", "low", "high"),
    [
        ("selftrans", -0.4527 / 0.3317, 0.5473 / 0.3317),
        ("unit", 0, 1),
        ("imagenet", -2.1179, 2.6400),
        ("zscore", -1, 1),
    ],
)
def test_its_own_branches_see_the_asked_statistics(normalise: str, low: float, high: float) -> None:
    layer = build(normalise=normalise, channels=3).input
    halves = torch.tensor([0.0, 255.0]).repeat(1, 1, 2, 2)
    assert float(layer(halves).min()) == pytest.approx(low, abs=1e-3)
    assert float(layer(halves).max()) == pytest.approx(high, abs=1e-3)


def test_what_it_returns_and_answers_do_not_depend_on_the_batch() -> None:
    network = build().eval()
    image, infection = slices()
    output = network(image, None, infection)
    assert output.logits.shape == (6, 1)
    assert output.features.shape == (6, 512, 2, 2)
    assert output.embedding.shape == (6, 4 * 512)
    assert class_logits(output.logits).softmax(1).sum(1).tolist() == pytest.approx([1.0] * 6)
    apart = torch.cat([network(image[i : i + 1], None, infection[i : i + 1]).logits for i in range(6)])
    torch.testing.assert_close(apart, output.logits, atol=1e-5, rtol=0)


def test_before_training_the_loss_is_that_of_even_answers() -> None:
    network = build(weights=None).eval()
    shown = batch()
    for head in BRANCHES:
        with torch.no_grad():
            network.branch(head).head.weight *= 0.01
            network.branch(head).head.bias.zero_()
        found = loss_of((head,), remembers=False, strength=None)(network, shown, torch.Generator())["loss"]
        assert float(found.detach()) == pytest.approx(math.log(2), abs=0.02)


def test_an_empty_side_is_a_zero_vector_and_runs_nothing() -> None:
    network = build()
    image, infection = slices()
    seen: list[int] = []
    network.infected.backbone.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    before = state(network.infected.backbone, "")
    network.train()
    empty = network(image, None, torch.zeros_like(infection), heads=("infected",))
    nothing = network(image, None, None, heads=("infected",))
    assert seen == []
    assert all(torch.equal(v, before[k]) for k, v in network.infected.backbone.state_dict().items())
    assert torch.equal(empty.branches["infected"], nothing.branches["infected"])
    network.eval()
    pools = network(image, None, infection, heads=("infected",))
    network.answers = "infected"
    vector = network(image, None, infection).embedding
    # slices: both sides, left, right, none, both, left
    left, right = (vector[:, 512 * i : 512 * (i + 1)].abs().sum(1) > 0 for i in (1, 2))
    assert left.tolist() == [True, True, False, False, True, True]
    assert right.tolist() == [True, False, True, False, True, False]
    assert seen == [7, 7]
    assert pools.branches["infected"].shape == (6, 1)


def test_without_infection_the_answer_depends_on_the_slice_alone() -> None:
    network = build(answers="infected").eval()
    image, infection = slices()
    plain = network(image, None, torch.zeros_like(infection))
    with torch.no_grad():
        for parameter in network.infected.backbone.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert torch.equal(network(image, None, None).logits, plain.logits)
    weight = network.infected.head.weight.detach()
    pool = network.look(image, None, None, heat=False).pool
    torch.testing.assert_close(plain.logits, pool @ weight[:, :512].T + network.infected.head.bias)


def test_a_mirror_exchanges_left_and_right() -> None:
    network = build(answers="infected", backbone="resnet18").eval()
    image, infection = slices()
    # a symmetric backbone: kernels that are their own mirror image
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
    wide = torch.zeros_like(infection)
    wide[..., 20:40, 8:24], wide[:3, :, 20:40, 40:56] = 1, 1
    one = network(image, None, wide).embedding
    other = network(image.flip(-1), None, wide.flip(-1)).embedding
    assert (one[:, 512:1024] - one[:, 1024:]).abs().max() > 0.1
    # strides of 2 see an even side from one end, so the maps are nearly, not exactly, mirrored
    swapped = torch.cat([other[:, 1024:], other[:, 512:1024]], dim=1)
    near = (one[:, 512:] - swapped).norm() / one[:, 512:].norm()
    far = (one[:, 512:] - other[:, 512:]).norm() / one[:, 512:].norm()
    assert near < 0.5 * far


def test_permuting_the_pools_permutes_the_fusion_and_zero_weights_leave_the_bias() -> None:
    network = build().eval()
    image, infection = slices()
    output = network(image, None, infection)
    head, vector = network.fusion.head, output.embedding
    order = torch.randperm(vector.shape[1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vector[:, order] @ head.weight[:, order].T + head.bias, output.logits)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(0.7)
    p = network(image, None, infection).logits.sigmoid()
    torch.testing.assert_close(p, torch.full_like(p, torch.tensor(0.7).sigmoid().item()))


def test_the_fusion_joins_each_pool_once_in_the_papers_order() -> None:
    network = build().eval()
    image, infection = slices()
    fused = network(image, None, infection).embedding
    network.answers = "infected"
    infected = network(image, None, infection).embedding
    network.answers = "heat"
    heat = network(image, None, infection)
    torch.testing.assert_close(fused, torch.cat([infected[:, :512], heat.embedding, infected[:, 512:]], dim=1))
    assert heat.attention.shape == (6, 1, 2, 2)
    assert heat.attention.min() == 0
    assert heat.features is None


def test_tau_masks_margins_and_concatenation_change_what_the_heat_map_branch_sees() -> None:
    image, infection = slices()
    found = {}
    for name, values in {
        "plain": {}, "tau": {"tau": 0.3}, "mask": {"region": "mask"}, "margin": {"heat_margin": 0.2},
        "literal": {"heat_norm": "paper"}, "whole": {"tau": 1.0},
    }.items():  # fmt: skip
        network = build(answers="heat", **values).eval()
        found[name] = network(image, None, infection)
    same = [n for n in found if n != "plain" and torch.equal(found[n].embedding, found["plain"].embedding)]
    assert not same
    assert found["whole"].heat_box.tolist() == [[0, 0, SIDE - 1, SIDE - 1]] * 6
    area = {n: (o.heat_box[:, 2:] - o.heat_box[:, :2] + 1).prod(1) for n, o in found.items()}
    assert (area["tau"] >= area["plain"]).all()
    assert (area["margin"] >= area["plain"]).all()
    joined = build(answers="heat", heat_concat=True).eval()
    output = joined(image, None, infection)
    assert output.embedding.shape == (6, 1024)
    assert output.features is not None


@pytest.mark.parametrize("answers", ["global", "infected", "fusion"])
def test_a_class_activation_map_of_the_whole_slice_exists(answers: str) -> None:
    network = build(answers=answers).eval().requires_grad_(False)
    image, infection = slices(2)
    output = network(image.requires_grad_(), None, infection)
    assert grad_cam(output, 1).shape == (2, 1, 2, 2)


class Watch:
    """A log that keeps the network's state after each epoch."""

    def __init__(self) -> None:
        self.network: torch.nn.Module = torch.nn.Identity()
        self.states: list[dict[str, torch.Tensor]] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.states.append(state(self.network, ""))


def test_each_stage_leaves_the_others_bit_identical(tmp_path: Path) -> None:
    parts = {"global": "global_branch.", "heat": "heat.", "infected": "infected.", "fusion": "fusion."}
    watch = Watch()
    found = fitted(tmp_path, log=watch)
    assert [row["phase"] for row in found.epochs] == list(parts)
    for earlier, later, name in zip(watch.states, watch.states[1:], list(parts)[1:], strict=False):
        moved = {k for k in later if not torch.equal(later[k], earlier[k])} - {"_extra_state"}
        assert moved
        assert all(k.startswith(parts[name]) for k in moved)
        assert name == "fusion" or any("running_mean" in k for k in moved)
    assert all(torch.equal(v, watch.states[-1][k]) for k, v in found.network.state_dict().items())


def test_a_finished_branch_starts_the_next(tmp_path: Path) -> None:
    network = build()
    for name in ("heat", "infected"):
        assert not torch.equal(
            network.branch(name).backbone.trunk.conv1.weight, network.global_branch.backbone.trunk.conv1.weight
        )
    for follows in (True, False):
        config = registry.configure(METHOD, {**SMALL, "init_from_previous": follows})
        phases = {phase.name: phase for phase in METHOD.phases(config)}
        own = build(seed=3)
        for name in ("heat", "infected"):
            phases[name].prepare(own, iter([batch()]))  # type: ignore[misc]
            first, then = own.global_branch.backbone.state_dict(), own.branch(name).backbone.state_dict()
            same = all(torch.equal(then[k], first[k]) for k in first)
            assert same is follows
            assert own.answers == name


class Halt:
    """A log that ends the training when it hears of its n-th epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def metrics(self, values: dict[str, float], step: int) -> None:
        if step == self.epoch:
            raise InterruptedError


def test_an_interruption_in_any_phase_changes_nothing(tmp_path: Path) -> None:
    values = {"backbone": "squeezenet1_1", "epochs": 2, "fusion_epochs": 1}  # its checkpoints are small
    whole = fitted(tmp_path / "whole", **values)
    for epoch in (3, 7):
        folder = tmp_path / str(epoch)
        with pytest.raises(InterruptedError):
            fitted(folder, log=Halt(epoch), **values)
        again = fitted(folder, **values)
        assert again.network.answers == "fusion"
        assert all(torch.equal(again.network.state_dict()[k], v) for k, v in whole.network.state_dict().items())
        pd.testing.assert_frame_equal(pd.DataFrame(again.epochs), pd.DataFrame(whole.epochs))


@pytest.mark.parametrize(
    ("strategy", "answers", "names"),
    [
        ("G-H-I-F", "fusion", ["global", "heat", "infected", "fusion"]),
        ("G-H-I-F", "heat", ["global", "heat"]),
        ("G-H-I-F", "infected", ["global", "infected"]),
        ("G-H-I-F", "global", ["global"]),
        ("GHI-F", "fusion", ["branches", "fusion"]),
        ("GHI-F", "heat", ["branches"]),
        ("GHIF", "fusion", ["joint"]),
        ("GHIF", "infected", ["joint"]),
    ],
)
def test_the_strategies_have_their_phases(strategy: str, answers: str, names: list[str]) -> None:
    values = {**SMALL, "strategy": strategy, "answers": answers}
    config = registry.configure(METHOD, values)
    phases = METHOD.phases(config)
    assert [phase.name for phase in phases] == names
    network = build(strategy=strategy, answers=answers)
    shown = batch()
    for phase in phases:
        phase.prepare(network, iter([shown]))  # type: ignore[misc]
        trained = apply_freezing(network, phase)
        loss = phase.loss(network, shown, torch.Generator().manual_seed(0))["loss"]
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
        frozen = [p for p in network.parameters() if not p.requires_grad]
        assert all(p.grad is None for p in frozen)
        network.zero_grad()
    assert network.answers == answers
    assert respond(network.eval(), shown).logits.shape == (6, 1)


def test_joint_training_runs_and_measures_the_mean_before_the_fusion(tmp_path: Path) -> None:
    found = fitted(tmp_path, 1, strategy="GHI-F", backbone="squeezenet1_1")
    assert found.network.answers == "mean"
    assert {"train_global", "train_heat", "train_infected"} <= set(found.epochs[0])


def network_of_a_run(**values: Any) -> Any:
    return build(uses={"global": used(), "tau": 0.6}, global_branch="run", **values)


def test_another_runs_network_is_the_global_branch_and_stays_as_it_is(tmp_path: Path) -> None:
    uses = {"global": used(), "tau": 0.6}
    torch.manual_seed(0)
    before = state(METHOD.build(registry.configure(METHOD, {**SMALL, "global_branch": "run"}), spec(uses=uses)), "gl")
    values = {"global_branch": "run", "tau": None, "answers": "infected", "optimiser": "adam"}
    found = fitted(tmp_path, uses=uses, **values)
    assert found.network.how.tau == 0.6
    assert [row["phase"] for row in found.epochs] == ["infected"]
    fused = METHOD.phases(registry.configure(METHOD, {**SMALL, **values, "answers": "fusion"}))
    assert [phase.name for phase in fused] == ["heat", "infected", "fusion"]
    after = state(found.network, "gl")
    assert after
    assert all(torch.equal(after[k], v) for k, v in before.items())
    found.network.train()
    assert not any(module.training for module in found.network.global_branch.network.modules())
    theirs = found.network.global_branch.network.eval()
    image, _ = slices()
    torch.testing.assert_close(found.network.look(image, None, None, heat=False).pool, theirs(image).embedding)
    # its first weights were the used network's
    fresh = network_of_a_run()
    phases = METHOD.phases(registry.configure(METHOD, {**SMALL, "global_branch": "run"}))
    phases[0].prepare(fresh, iter([batch()]))  # type: ignore[misc]
    first = fresh.global_branch.network.backbone.state_dict()
    assert all(torch.equal(v, first[k]) for k, v in fresh.heat.backbone.state_dict().items())


def test_what_is_saved_is_built_again_with_the_tuned_tau(tmp_path: Path) -> None:
    uses = {"global": used(), "tau": 0.55}
    values = {"global_branch": "run", "tau": None}
    network = build(uses=uses, **values).eval()
    shaped = {"modality": "ct_slice", "shape": [SIDE, SIDE], "classes": ["rest", "covid19"], "uses": uses}
    described = {"method": METHOD.name, "config": registry.completed(METHOD, {**SMALL, **values}), "input": shaped}
    restore.save_network(tmp_path, network, described)
    again, _ = restore.load_network(tmp_path)
    image, infection = slices()
    assert again.how.tau == 0.55
    assert torch.equal(again(image, None, infection).logits, network(image, None, infection).logits)


@pytest.mark.parametrize(
    ("method", "config", "width"),
    [
        ("baselines", {"network": "vgg16"}, 4096),
        ("baselines", {"network": "densenet169"}, 1664),
        ("baselines", {"network": "resnet18", "hidden": [40]}, 40),
        ("ac_covidnet", {"widths": [4, 6, 8, 10], "encoded": 24}, 24),
    ],
)
def test_any_networks_vector_can_take_the_global_branchs_place(method: str, config: Any, width: int) -> None:
    uses = {"global": used(method, 96, **config)}
    values = {**SMALL, "global_branch": "run", "init_from_previous": False}
    with torch.device("meta"):
        network = METHOD.build(registry.configure(METHOD, values), spec(96, uses))
    assert network.fusion.head.in_features == width + 3 * 512
    assert network.infected.head.in_features == width + 2 * 512


class Odd(torch.nn.Module):
    """Gives what it is told to, by a step that the meta device cannot rehearse."""

    def __init__(self, gives: str) -> None:
        super().__init__()
        self.gives, self.scale = gives, torch.nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor, lung: Any = None) -> Output:
        assert image.is_meta or float(image.sum()) >= 0
        if image.is_meta and self.gives == "map only":
            float(image.sum())
        features = image[:, :, ::8, ::8].expand(-1, 5, -1, -1) * self.scale
        if self.gives == "vector only":
            return Output(features.mean((1, 2, 3))[:, None], embedding=features.flatten(1)[:, :7])
        return Output(features.mean((1, 2, 3))[:, None], features=None if self.gives == "neither" else features)


def test_networks_without_a_map_a_vector_or_both(monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry.get
    for gives, width, mapped in (("map only", 5, True), ("vector only", 7, False)):
        odd = registry.Method("odd", "", ("ct_slice",), METHOD.config, lambda _, __, g=gives: Odd(g), lambda _: [])
        monkeypatch.setattr(registry, "get", lambda name, odd=odd: odd if name == "odd" else known(name))
        given = {"method": "odd", "config": {}, "input": used()["input"]}
        assert rebuilt(given, spec())[1:] == (width, mapped)
        values = {**SMALL, "global_branch": "run", "init_from_previous": False}
        if not mapped:
            with pytest.raises(ConfigError, match="no heat map"):
                METHOD.build(registry.configure(METHOD, values), spec(uses={"global": given}))
            values["answers"] = "infected"
        network = METHOD.build(registry.configure(METHOD, values), spec(uses={"global": given}))
        image, infection = slices()
        assert network.eval()(image, None, infection).logits.shape == (6, 1)
    odd = registry.Method("odd", "", ("ct_slice",), METHOD.config, lambda _, __: Odd("neither"), lambda _: [])
    monkeypatch.setattr(registry, "get", lambda name: odd if name == "odd" else known(name))
    with pytest.raises(ConfigError, match="neither a vector nor a map"):
        rebuilt(given, spec())


def test_a_slice_is_asked_about_once_and_as_it_is() -> None:
    network = build().eval()
    shown, memory = batch(), Memory()
    first = memory.recall(network, shown, heat=True)
    asked: list[int] = []
    network.global_branch.backbone.register_forward_hook(lambda _, given, __: asked.append(len(given[0])))
    again = memory.recall(network, shown, heat=True)
    assert not asked
    assert first.pool is not None
    assert first.box is not None
    assert torch.equal(again.pool, first.pool)  # type: ignore[arg-type]
    whole = network.look(shown.image, None, None, heat=True)
    torch.testing.assert_close(first.pool, whole.pool, atol=1e-5, rtol=1e-4)
    assert torch.equal(first.box, whole.box)
    # in another order, and one by one: the same
    turned = Batch(**{**shown.__dict__, "image": shown.image.flip(0), "rows": shown.rows.flip(0)})
    assert torch.equal(Memory().recall(network, turned, heat=True).pool.flip(0), first.pool)  # type: ignore[union-attr]
    assert asked == [6] + [1] * 6
    assert memory.recall(build(seed=5).eval(), shown, heat=True).pool is not first.pool


def test_augmentation_of_crops_leaves_the_global_view_alone() -> None:
    config = {name: registry.configure(METHOD, {**SMALL, "augment": name}) for name in ("crops", "view", "none")}
    phases = {name: METHOD.phases(c) for name, c in config.items()}
    assert [p.augment is None for p in phases["crops"]] == [False, True, True, True]
    assert [p.augment is None for p in phases["view"]] == [False] * 4
    assert [p.augment is None for p in phases["none"]] == [True] * 4
    shown = batch()
    for name, changes in (("crops", True), ("none", False)):
        network = build().eval()
        for phase in phases[name][1:]:
            one, other = (phase.loss(network, shown, torch.Generator().manual_seed(s))["loss"] for s in (1, 2))
            assert (float(one.detach()) != float(other.detach())) is changes
    heat = phases["view"][1]
    assert heat.augment is not None
    seen: list[torch.Tensor] = []
    network = build().eval()
    network.global_branch.backbone.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    for seed in (1, 2):  # boxes follow from the changed slice, so nothing is remembered
        heat.loss(network, heat.augment(shown, torch.Generator().manual_seed(seed)), torch.Generator())
    assert not torch.equal(seen[0], seen[1])


def test_the_loss_is_binary_cross_entropy_over_one_or_two_outputs() -> None:
    logits, target = torch.tensor([[2.0], [-1.0]]), torch.tensor([1, 0])
    expected = -(torch.tensor(2.0).sigmoid().log() + (1 - torch.tensor(-1.0).sigmoid()).log()) / 2
    torch.testing.assert_close(branch_loss(logits, target), expected)
    two = torch.cat([-logits, logits], dim=1)
    torch.testing.assert_close(branch_loss(two, target), expected)
    for extreme in (0.0, 60.0, -60.0):
        for outputs in (1, 2):
            x = torch.full((1, outputs), extreme, dtype=torch.float16, requires_grad=True)
            loss = branch_loss(x, torch.tensor([1]))
            loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(x.grad).all()  # type: ignore[union-attr]
    network = build(num_outputs=2)
    shown = batch()
    assert respond(network.eval(), shown).logits.shape == (6, 2)


def test_fusion_overfits_eight_slices() -> None:
    values = {"strategy": "GHIF", "augment": "none", "optimiser": "adam", "lr": 1e-3, "epochs": 1}
    network, shown = build(**values), batch(8)
    shown.image[1::2, :, 20:44, 20:44] = 250
    phase = METHOD.phases(registry.configure(METHOD, {**SMALL, **values}))[0]
    optimiser = phase.optimiser(apply_freezing(network, phase))
    for _ in range(60):
        parts = phase.loss(network, shown, torch.Generator())
        optimiser.zero_grad()
        parts["loss"].backward()
        optimiser.step()
        if parts["fusion"] < 0.05:
            break
    assert parts["fusion"] < 0.05


def test_training_the_infected_branch_needs_masks() -> None:
    shown = batch()
    shown.infection = None
    network = build()
    for phase in METHOD.phases(registry.configure(METHOD, SMALL)):
        if phase.name == "infected":
            with pytest.raises(TrainingError, match="no slice of the pack has an infection mask"):
                phase.loss(network, shown, torch.Generator())
        else:
            network.eval()
            assert torch.isfinite(phase.loss(network, shown, torch.Generator())["loss"])


def test_training_the_infected_branch_on_empty_masks_alone_is_refused() -> None:
    empty, full = batch(), batch()
    empty.infection = torch.zeros_like(empty.image)
    phases = {phase.name: phase for phase in METHOD.phases(registry.configure(METHOD, SMALL))}
    for name in ("global", "heat", "fusion"):
        phases[name].prepare(build(), iter([empty]))  # type: ignore[misc]
    with pytest.raises(DataError, match=r"all 12 infection masks of the train role are empty.*answers to heat"):
        phases["infected"].prepare(build(), iter([empty, empty]))  # type: ignore[misc]
    phases["infected"].prepare(build(), iter([empty, full]))  # type: ignore[misc]
    (joint,) = METHOD.phases(registry.configure(METHOD, {**SMALL, "strategy": "GHIF"}))
    with pytest.raises(DataError, match="are empty"):
        joint.prepare(build(), iter([empty]))  # type: ignore[misc]
    empty.infection = None
    with pytest.raises(TrainingError, match="no slice of the pack has an infection mask"):
        phases["infected"].prepare(build(), iter([empty]))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"tau": 1.5}, "heat maps lie"),
        ({"tau": -0.1}, "heat maps lie"),
        ({"min_side": 0}, "min_side"),
        ({"margin": 0.6}, "margin"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"fusion_epochs": 0}, "fusion_epochs"),
        ({"crop_scale": [0.0, 1.0]}, "scale is"),
        ({"connectivity": 6}, "choose one of"),
        ({"num_outputs": 3}, "choose one of"),
        ({"backbone": "resnet1"}, "choose one of"),
        ({"strategy": "GHIF", "global_branch": "run"}, "must be own"),
        ({"answers": "global", "global_branch": "run"}, "nothing would be trained"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        METHOD.phases(registry.configure(METHOD, values))


@pytest.mark.parametrize(
    ("values", "uses", "says"),
    [
        ({"tau": None}, {}, "none was tuned"),
        ({"global_branch": "run"}, {}, "none is named"),
        ({}, {"global": used()}, "is own: set it to run"),
        ({"global_branch": "run", "backbone": "resnet50"}, {"global": used()}, "init_from_previous"),
        ({"global_branch": "run"}, {"global": used(side=96)}, "the same recipe"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(values: Any, uses: Any, says: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=says):
        build(uses=uses, **values)


def test_other_pictures_and_classes_are_refused() -> None:
    config = registry.configure(METHOD, SMALL)
    for wrong, says in (
        (InputSpec("cxr", (64, 64), ("rest", "covid19")), "CT slices"),
        (InputSpec("ct_slice", (63, 64), ("rest", "covid19")), "at least 64"),
        (InputSpec("ct_slice", (64, 64), ("a", "b", "covid19")), "two classes"),
    ):
        with pytest.raises(ConfigError, match=says):
            METHOD.build(config, wrong)


def test_tau_is_not_asked_for_where_no_heat_map_is_made() -> None:
    with torch.device("meta"):
        assert build(tau=None, answers="infected").how.tau is None


def test_the_papers_readings_are_options() -> None:
    found = {row["name"] for row in registry.deviations(METHOD, registry.completed(METHOD, {}))}
    assert found == {"heat_source", "heat_norm", "num_outputs", "share_sides"}
    literal = {"heat_source": "sum", "heat_norm": "paper", "num_outputs": 2, "share_sides": False}
    assert not registry.deviations(METHOD, registry.completed(METHOD, literal))
