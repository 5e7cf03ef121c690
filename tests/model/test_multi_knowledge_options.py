"""Options of the multi-knowledge network: class-weighted heat maps, a backbone for each side, and DECAPS inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from chestflow.config_segmentation import InfectionSlices
from chestflow.errors import ConfigError
from chestflow.imaging.cam import grad_cam
from chestflow.methods import registry
from chestflow.nn.backbones import Backbone
from chestflow.nn.knowledge_branches import Branch
from chestflow.nn.knowledge_network import MultiKnowledge, RegionSettings
from chestflow.nn.knowledge_regions import boxes, heat_map, largest_component
from chestflow.nn.output import Output
from chestflow.training.knowledge_memory import Memory
from chestflow.training.phases import Batch, apply_freezing
from chestflow.training.used_network import rebuilt
from tests.model.knowledge_slices import METHOD, SMALL, build, slices, spec, used

DECAPS = {"backbone": "resnet18", "channels": 1, "width": 16, "capsules": [4, 4, 4]}


def batch(count: int = 6) -> Batch:
    image, infection = slices(count)
    known = torch.ones(count, dtype=torch.bool)
    return Batch(
        image, torch.arange(count) % 2, None, infection, known, torch.full((count,), torch.nan), torch.arange(count)
    )


def phases(**values: Any) -> dict[str, Any]:
    return {phase.name: phase for phase in METHOD.phases(registry.configure(METHOD, {**SMALL, **values}))}


# --- what the heat map is made of


@pytest.mark.parametrize("outputs", [1, 2])
def test_an_own_global_branch_weighs_its_map_by_its_positive_output(outputs: int) -> None:
    network = build(answers="heat", heat_source="cam", num_outputs=outputs).eval()
    image, infection = slices()
    known = network.look(image, None, infection, heat=True)
    weights = network.global_branch.head.weight[-1]
    expected = (known.features * weights[:, None, None]).sum(1, keepdim=True).relu()
    torch.testing.assert_close(known.heat, expected, atol=1e-6, rtol=1e-4)
    assert not known.heat.requires_grad
    plain = build(answers="heat", num_outputs=outputs).eval().look(image, None, infection, heat=True)
    assert not torch.equal(known.box, plain.box)
    torch.testing.assert_close(network(image, None, infection).attention.amax((1, 2, 3)), torch.ones(6))


def test_a_used_linear_heads_map_is_the_same_weighting_up_to_a_factor() -> None:
    network = build(uses={"global": used()}, global_branch="run", heat_source="cam", answers="heat").eval()
    image, _ = slices()
    known = network.look(image, None, None, heat=True)
    theirs = network.global_branch.network
    weights = theirs.head[1].weight[1]
    expected = (theirs(image).features * weights[:, None, None]).sum(1, keepdim=True).relu()
    assert (expected.amax((1, 2, 3)) > 0).any()
    torch.testing.assert_close(heat_map(known.heat, (64, 64)), heat_map(expected, (64, 64)), atol=1e-4, rtol=1e-3)
    assert not known.pool.requires_grad
    with torch.no_grad():  # as a memory asks, slice by slice
        alone = Memory().recall(network, batch(), heat=True)
    assert torch.equal(alone.box, known.box)


def test_a_used_head_that_is_not_linear_is_explained_by_its_gradients() -> None:
    hidden = used(network="resnet18", channels=1, hidden=[20])
    network = build(uses={"global": hidden}, global_branch="run", heat_source="cam", answers="fusion").eval()
    image, infection = slices(3)
    heat = network.look(image, None, None, heat=True).heat
    theirs = network.global_branch.network(image.clone().requires_grad_())
    torch.testing.assert_close(heat, grad_cam(theirs, 1), atol=1e-7, rtol=1e-4)
    # Grad-CAM of the fusion goes through the same pass
    output = network(image.requires_grad_(), None, infection)
    assert grad_cam(output, 1).shape == (3, 1, 2, 2)


class Apart(nn.Module):
    """Shows a map that its answer does not follow from."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor, lung: Any = None) -> Output:
        vector = image[:, :, ::8, ::8].flatten(1) * self.scale
        return Output(vector[:, :1], features=image[:, :, ::4, ::4] * self.scale, embedding=vector)


def test_an_answer_that_does_not_follow_from_the_map_is_refused_before_training(monkeypatch: Any) -> None:
    apart = registry.Method("apart", "", ("ct_slice",), METHOD.config, lambda _, __: Apart(), lambda _: [])
    known = registry.get
    monkeypatch.setattr(registry, "get", lambda name: apart if name == "apart" else known(name))
    uses = {"global": {"method": "apart", "config": {}, "input": used()["input"]}}
    values = {"global_branch": "run", "init_from_previous": False}
    assert build(uses=uses, **values).how.source == "relu_sum"
    assert build(uses=uses, heat_source="cam", answers="infected", **values).how.source == "cam"  # no heat map is made
    with pytest.raises(ConfigError, match=r"heat_source cam.*choose relu_sum"):
        build(uses=uses, heat_source="cam", **values)


# --- metamorphic: a mirrored slice


class Symmetric(nn.Module):
    """A backbone whose kernels are their own mirror images, without strides that see a side from one end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 5, padding=2)
        with torch.no_grad():
            self.conv.weight.copy_(self.conv.weight + self.conv.weight.flip(-1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(self.conv(x).relu(), 4)


@pytest.mark.parametrize("source", ["relu_sum", "sum", "abs_max", "cam"])
def test_a_mirror_of_the_slice_mirrors_heat_map_and_box(source: Any) -> None:
    torch.manual_seed(0)
    how = RegionSettings(0.6, source)
    network = MultiKnowledge(nn.Identity(), {"global": Branch(8, 1, Symmetric())}, how, "global", False).eval()
    image, _ = slices()
    image = nn.functional.avg_pool2d(image, 9, 1, 4)
    one, other = (network.look(shown, None, None, heat=True) for shown in (image, image.flip(-1)))
    first, second = (heat_map(known.heat, (64, 64)) for known in (one, other))
    assert float(first.amax()) == 1
    torch.testing.assert_close(second, first.flip(-1), atol=1e-5, rtol=0)
    turned = other.box.clone()
    turned[:, 1], turned[:, 3] = 63 - other.box[:, 3], 63 - other.box[:, 1]
    assert torch.equal(turned, one.box)
    assert not torch.equal(other.box, one.box)


def test_tau_of_0_leaves_out_the_minimum_alone() -> None:
    network = build(answers="heat", tau=0.0, min_side=1).eval()
    image, infection = slices()
    known = network.look(image, None, infection, heat=True)
    above = heat_map(known.heat, (64, 64))[:, 0] > 0
    parts = torch.stack([torch.from_numpy(largest_component(one.numpy())) for one in above])
    assert torch.equal(known.box, boxes(parts))
    assert torch.equal(network(image, None, infection).heat_box, known.box)
    higher = build(answers="heat", tau=0.75, min_side=1).eval().look(image, None, infection, heat=True).box
    assert (known.box[:, :2] <= higher[:, :2]).all()
    assert (known.box[:, 2:] >= higher[:, 2:]).all()


# --- a backbone for each side


def test_two_backbones_are_one_more_of_the_same_size() -> None:
    with torch.device("meta"):
        counts = {
            shared: sum(
                p.numel() for p in build(224, backbone="densenet169", channels=3, share_sides=shared).parameters()
            )
            for shared in (True, False)
        }
    assert counts == {True: 37_468_420, False: 37_468_420 + 12_484_480}
    assert "infected.right.trunk.conv1.weight" in build(share_sides=False).state_dict()


def test_each_side_has_its_own_and_an_empty_side_runs_none() -> None:
    network = build(answers="infected", share_sides=False).eval()
    image, infection = slices()
    ran: dict[str, list[int]] = {"backbone": [], "right": []}
    for name, found in ran.items():
        getattr(network.infected, name).register_forward_hook(lambda _, given, __, f=found: f.append(len(given[0])))
    with torch.no_grad():
        whole = network(image, None, infection).embedding
        assert ran == {"backbone": [4], "right": [3]}  # both sides, left, right, none, both, left
        network(image, None, None)
        network(image[3:4], None, infection[3:4])
        assert ran == {"backbone": [4], "right": [3]}
        left, right = whole[:, 512:1024], whole[:, 1024:]
        assert (left.abs().sum(1) > 0).tolist() == [True, True, False, False, True, True]
        assert (right.abs().sum(1) > 0).tolist() == [True, False, True, False, True, False]
        # equal weights give the answer of a shared one
        network.infected.right.load_state_dict(network.infected.backbone.state_dict())
        same = network(image, None, infection).embedding
        shared = build(answers="infected").eval()
        shared.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("infected.right")})
        torch.testing.assert_close(same, shared(image, None, infection).embedding, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(same[:, 512:1024], left, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(same[:, 1024:], right, atol=1e-3)


def test_both_backbones_train_together_start_alike_and_stay_frozen_otherwise() -> None:
    network, made, shown = build(share_sides=False), phases(share_sides=False), batch()
    first = network.global_branch.backbone.state_dict()
    made["infected"].prepare(network, iter([shown]))
    for backbone in network.infected.backbones:
        assert all(torch.equal(v, first[k]) for k, v in backbone.state_dict().items())
    trained = {id(p) for p in apply_freezing(network, made["infected"])}
    assert trained == {id(p) for p in network.infected.parameters()}
    made["infected"].loss(network, shown, torch.Generator().manual_seed(0))["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.infected.parameters())
    for name in ("heat", "fusion"):
        apply_freezing(network, made[name])
        assert not any(p.requires_grad for p in network.infected.parameters())
        assert not any(module.training for module in network.infected.modules())


def test_several_processes_are_refused_with_a_backbone_for_each_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    made = phases(share_sides=False)
    for call in (lambda: made["infected"].prepare(build(share_sides=False), iter([batch()])),
                 lambda: made["infected"].loss(build(share_sides=False), batch(), torch.Generator())):  # fmt: skip
        with pytest.raises(ConfigError, match="one process"):
            call()
    made["heat"].prepare(build(share_sides=False), iter([batch()]))  # it runs whatever a batch holds


def test_lungs_say_which_side_an_infection_is_on() -> None:
    image, _ = slices(1)
    lung, infection = torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    lung[..., 10:50, 2:14] = lung[..., 10:50, 18:30] = 1  # both left of the midline
    infection[..., 20:30, 20:28] = 1  # on the one further right
    sides = {}
    for name in ("midline", "lungs"):
        network = build(answers="infected", sides=name).eval()
        vector = network(image, lung, infection).embedding
        sides[name] = [bool(vector[0, 512 * i : 512 * (i + 1)].abs().sum() > 0) for i in (1, 2)]
    assert sides == {"midline": [True, False], "lungs": [False, True]}
    # without a lung mask it is the midline
    assert network(image, None, infection).embedding[0, 1024:].abs().sum() == 0


# --- DECAPS in the global branch's place


def knowing_decaps(seed: int = 0, theirs: dict[str, Any] | None = None, **values: Any) -> Any:
    uses = {"global": used("decaps", 96, **DECAPS, **(theirs or {}))}
    return build(96, uses, seed, global_branch="run", **values)


@pytest.mark.parametrize("source", ["relu_sum", "cam"])
def test_decaps_gives_a_vector_and_a_map(source: str) -> None:
    network = knowing_decaps(heat_source=source).eval()
    assert network.fusion.head.in_features == 4 * 16 + 3 * 512
    image = torch.rand(2, 1, 96, 96, generator=torch.Generator().manual_seed(0)) * 255
    known = network.look(image, None, None, heat=True)
    theirs = network.global_branch.network(image)
    assert known.features.shape == (2, 256, 6, 6)  # of stride 16, where its backbone is left
    torch.testing.assert_close(known.pool, theirs.embedding.detach(), atol=1e-5, rtol=1e-4)
    assert known.heat.shape == (2, 1, 6, 6)
    assert network(image, None, None).logits.shape == (2, 1)


def test_what_decaps_does_not_use_is_not_taken_from_it(tmp_path: Path) -> None:
    network = knowing_decaps()
    assert {key.split(".")[1] for key in network.global_branch.idle} == {"layer4"}
    theirs = network.global_branch.network.backbone.state_dict()
    before = {k: v.clone() for k, v in network.heat.backbone.state_dict().items()}
    phases(global_branch="run")["heat"].prepare(network, iter(()))
    after = network.heat.backbone.state_dict()
    for key, value in after.items():
        assert torch.equal(value, before[key] if "layer4" in key else theirs[key]), key
    assert not torch.equal(after["trunk.layer4.0.conv1.weight"], theirs["trunk.layer4.0.conv1.weight"])
    # weights of its own fill what is not taken
    torch.manual_seed(5)
    stand_in = Backbone("resnet18", 1).trunk.state_dict()
    torch.save(stand_in, tmp_path / "weights.pth")
    filled = knowing_decaps()
    phases(global_branch="run", weights=str(tmp_path / "weights.pth"))["heat"].prepare(filled, iter(()))
    theirs = filled.global_branch.network.backbone.state_dict()
    for key, value in filled.heat.backbone.state_dict().items():
        assert torch.equal(value, stand_in[key.removeprefix("trunk.")] if "layer4" in key else theirs[key]), key


def test_all_is_taken_from_a_network_that_uses_it_or_began_from_weights() -> None:
    assert not knowing_decaps(theirs={"weights": "imagenet"}).global_branch.idle
    assert not rebuilt(used(), spec())[0].idle
    assert not rebuilt(used("saeedi", backbone="resnet18", channels=1), spec())[0].idle


# --- defaults


def test_defaults_are_those_of_the_paper() -> None:
    made = METHOD.config()
    assert (made.backbone, made.channels, made.normalise, made.num_outputs) == ("densenet169", 3, "selftrans", 1)
    assert (made.tau, made.margin, made.min_side) == (0.75, 0.05, 16)
    assert (made.crop_scale, made.flip, made.jitter) == ((0.5, 1.0), 0.5, 0.2)
    assert (made.optimiser, made.momentum, made.lr, made.weight_decay) == ("sgd", 0.9, 1e-2, 1e-4)
    assert (made.schedule, made.schedule_step, made.batch_size, made.epochs) == ("step", 30, 32, 50)
    assert (made.monitor, made.strategy, made.accumulate) == ("accuracy", "G-H-I-F", 1)
    for phase in METHOD.phases(made):
        assert (phase.epochs, phase.batch_size, phase.sampler.__name__) == (50, 32, "uniform")
        (group,) = phase.optimiser([nn.Parameter(torch.zeros(1))]).param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-2, 0.9, 1e-4)


def test_inf_nets_defaults_are_its_codes() -> None:
    made = InfectionSlices()
    assert (made.backbone, made.channel, made.size) == ("res2net50", 32, 352)
    assert (made.lr, made.batch_size, made.epochs, made.clip_value) == (1e-4, 24, 100, 0.5)
    assert made.scales == [0.75, 1.0, 1.25]
    assert made.threshold == 0.5
    assert (made.pseudo.chunk, made.pseudo.lr, made.pseudo.batch_size, made.pseudo.epochs) == (100, 3e-4, 16, 9)
    assert not made.pseudo.include_test_in_pseudo
