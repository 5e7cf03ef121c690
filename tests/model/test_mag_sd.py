"""Behaviour of MAG-SD: its parameters, its step with one or four forwards, its ablations, what it refuses."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import get_model

from chestflow.errors import ConfigError, TrainingError
from chestflow.losses.soft_distance import regularised_loss
from chestflow.methods import registry
from chestflow.methods.mag_sd import VIEWS
from chestflow.methods.registry import InputSpec
from chestflow.training.attention_augmentation import attention_augment, draw_uniforms
from chestflow.training.phases import Batch, apply_freezing

METHOD = registry.get("mag_sd")
SPEC = InputSpec("cxr", (64, 64), ("non_covid", "covid19"))
SMALL = {"backbone": "resnet18", "maps": 4, "basic": "none"}


def config(**values):
    return registry.configure(METHOD, {**SMALL, **values})


def network(seed=0, spec=SPEC, **values):
    torch.manual_seed(seed)
    return METHOD.build(config(**values), spec)


def images(count=4, side=64, seed=0):
    """Noise; odd ones carry a bright square."""
    x = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed)) * 80
    x[1::2, :, side // 2 : 3 * side // 4, side // 4 : side // 2] += 150
    return x


def batch(count=4, seed=0, side=64):
    return Batch(
        image=images(count, side, seed),
        target=torch.arange(count) % 2,
        lung=None,
        infection=None,
        has_infection=torch.zeros(count, dtype=torch.bool),
        ratio=torch.full((count,), math.nan),
        rows=torch.arange(count),
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def step(built, sample, seed=0, **values):
    return METHOD.phases(config(**values))[0].loss(built, sample, generator(seed))


@pytest.mark.parametrize(("scales", "count"), [((7,), 23_763_968), ((7, 14), 23_796_800), ((7, 14, 28), 23_813_248)])
def test_parameter_counts(scales, count):
    spec = InputSpec("cxr", (224, 224), ("normal", "pneumonia", "covid19"))
    with torch.device("meta"):
        built = METHOD.build(METHOD.config(scales=scales), spec)
        output = built.eval()(torch.empty(2, 1, 224, 224))
    assert sum(p.numel() for p in built.parameters()) == count
    assert built.classifier.weight.shape == (3, 65_536)
    assert built.classifier.bias is None
    assert built.backbone.trunk.conv1.weight.shape == (64, 1, 7, 7)
    assert output.maps.shape == (2, 32, 7, 7)
    assert output.attention.shape == (2, 1, 7, 7)
    assert output.features.shape == (2, 2048, 7, 7)
    assert output.embedding.shape == (2, 2048)


def test_defaults_are_the_papers():
    defaults = METHOD.config()
    assert (defaults.backbone, defaults.scales, defaults.maps, defaults.pooling) == (
        "resnet50",
        (7, 14),
        32,
        "attention",
    )
    assert (defaults.lr, defaults.momentum, defaults.weight_decay, defaults.batch_size) == (1e-3, 0.9, 1e-6, 32)
    assert (defaults.epochs, defaults.schedule, defaults.optimiser, defaults.monitor) == (
        100,
        "none",
        "sgd",
        "macro_f1",
    )
    assert (defaults.theta, defaults.reg, defaults.reg_weight, defaults.augmentations) == (
        *(0.7, "soft_distance", 1.0),
        "AM+AD+AP",
    )
    deviating = {row["name"] for row in registry.deviations(METHOD, registry.completed(METHOD, {}))}
    assert deviating == {"weights", "confidence", "label", "reduction"}


@pytest.mark.parametrize(
    ("backbone", "scales"), [("resnet18", (7, 14, 28)), ("densenet121", (7, 14)), ("squeezenet1_1", (7,))]
)
def test_other_backbones_and_sizes(backbone, scales):
    spec = dataclasses.replace(SPEC, shape=(64, 96), classes=("a", "b", "c", "covid19"))
    with torch.device("meta"):
        output = network(spec=spec, backbone=backbone, scales=list(scales)).eval()(torch.empty(1, 1, 64, 96))
    assert output.logits.shape == (1, 4)
    assert output.maps.shape == (1, 4, *output.features.shape[2:])
    assert output.embedding.shape == output.features.shape[:2]


def test_the_logits_are_the_formula_written_out():
    built = network().eval()
    with torch.no_grad():
        output = built(images())
        assert output.maps.min() >= 0
        torch.testing.assert_close(output.attention[:, 0], output.maps.mean(1))
        matrix = torch.einsum("bmhw,bchw->bmc", output.maps, output.features) / 4  # 2 x 2 cells
        unit = F.normalize((matrix.sign() * (matrix.abs() + 1e-6).sqrt()).flatten(1))
        torch.testing.assert_close(output.logits, 100 * unit @ built.classifier.weight.T, atol=1e-4, rtol=1e-4)


def test_untrained_logits_are_small_and_the_loss_near_its_expected_value():
    built = network(maps=32, seed=1).train()
    with torch.no_grad():
        spread = torch.cat([built(images(8, seed=s)).logits for s in range(3)]).std()
        assert 0.01 < spread < 0.6
        parts = step(built, batch(8))
    assert float(parts["cross_entropy"]) == pytest.approx(math.log(2), abs=0.25)
    assert float(parts["regulariser"]) == pytest.approx(3 * 0.49, abs=0.3)


def test_normalised_input_skips_the_input_layer():
    built = network().eval()
    with torch.no_grad():
        torch.testing.assert_close(built(built.input(images()), normalised=True).logits, built(images()).logits)


def test_answers_do_not_depend_on_the_batch():
    built, x = network().eval(), images()
    with torch.no_grad():
        together = built(x).logits
        apart = torch.cat([built(one[None]).logits for one in x])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_pooling_ablations():
    for pooling, pooled in (("gap", lambda f: f.mean((2, 3))), ("gmp", lambda f: f.amax((2, 3)))):
        built = network(pooling=pooling).eval()
        with torch.no_grad():
            output = built(images())
            torch.testing.assert_close(output.logits, pooled(output.features) @ built.classifier.weight.T)
    assert network(pooling="attention_max").eval()(images(1)).logits.shape == (1, 2)


def test_plain_pooling_leaves_the_attention_generator_alone():
    built = network(pooling="gap")
    before = {k: v.clone() for k, v in built.attention.state_dict().items()}
    train(built, 2, batch(), pooling="gap")
    assert all(torch.equal(v, before[k]) for k, v in built.attention.state_dict().items())
    assert all(p.grad is None for p in built.attention.parameters())


class Counted(torch.nn.Module):
    """A network that notes the size of each forward."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.input, self.sizes = inner, inner.input, []

    def forward(self, image, **options):
        self.sizes.append(len(image))
        return self.inner(image, **options)


@pytest.mark.parametrize("forward", ["joint", "separate"])
@pytest.mark.parametrize("augmentations", list(VIEWS))
def test_a_step_makes_as_many_forwards_as_it_says(forward, augmentations):
    counted = Counted(network().eval())
    found = step(counted, batch(), forward=forward, augmentations=augmentations)
    views = len(VIEWS[augmentations])
    joint = [4] + [4 * views] * (views > 0)
    assert counted.sizes == (joint if forward == "joint" else [4] * (1 + views))
    assert ("regulariser" in found) == (views > 0)


@pytest.mark.parametrize("options", [{"reg": "none"}, {"reg_weight": 0.0}])
def test_unregularised_is_cross_entropy_with_one_forward(options):
    counted = Counted(network().eval())
    found = step(counted, batch(), **options)
    assert counted.sizes == [4]
    assert torch.equal(found["loss"], F.cross_entropy(counted.inner(images()).logits, torch.arange(4) % 2))


def test_joint_and_separate_differ_by_batch_norm_alone():
    sample = batch()
    frozen = network().eval()
    for joint, separate in zip(
        step(frozen, sample, forward="joint").values(), step(frozen, sample, forward="separate").values(), strict=True
    ):
        torch.testing.assert_close(joint, separate, atol=1e-5, rtol=1e-5)
    moved = {}
    for forward in ("joint", "separate"):
        built = network().train()
        step(built, sample, forward=forward)
        moved[forward] = int(built.backbone.trunk.bn1.num_batches_tracked)
    assert moved == {"joint": 2, "separate": 4}


@pytest.mark.parametrize("reg", ["soft_distance", "l2", "ce_mean"])
def test_the_step_is_its_parts(reg):
    built, sample = network().eval(), batch()
    with torch.no_grad():
        found = step(built, sample, seed=7, reg=reg, theta=0.5, reg_weight=0.3)
        image = built.input(sample.image)
        raw = built(image, normalised=True)
        uniforms = draw_uniforms(4, generator(7), image.device)
        views = attention_augment(image, raw.maps, uniforms, VIEWS["AM+AD+AP"])
        logits = torch.stack([built(view, normalised=True).logits for view in views])
        expected = regularised_loss(raw.logits, logits, sample.target, reg=reg, theta=0.5, reg_weight=0.3)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


def test_settings_reach_the_augmentation():
    built, sample = network().eval(), batch()
    with torch.no_grad():
        base = step(built, sample)["regulariser"]
        for values in (
            *({"gamma": 0.1}, {"dim_value": 1.0}, {"pad": 0.0}, {"theta_box": [0.9, 0.9]}, {"theta_dim": [0.9, 0.9]}),
            *({"dim_rest": 1.001}, {"label": "code"}, {"reduction": "mean"}),
        ):
            assert not torch.equal(step(built, sample, **values)["regulariser"], base), values
        neutral = step(built, sample, augmentations="AM+AD", gamma=1.0, dim_value=1.0, reg="ce_mean")
        torch.testing.assert_close(neutral["regulariser"], neutral["cross_entropy"])


@pytest.mark.parametrize(
    ("case", "pooling"),
    [
        *((case, "attention") for case in ("one image", "one class", "black", "dead maps", "half", "mixed precision")),
        *(("one image", "gap"), ("black", "gmp"), ("dead maps", "attention_max")),
    ],
)
def test_loss_and_gradients_stay_finite(case, pooling):
    built, sample = network(pooling=pooling).train(), batch(1 if case == "one image" else 4)
    if case == "one class":
        sample = dataclasses.replace(sample, target=torch.zeros_like(sample.target))
    if case == "black":
        sample = dataclasses.replace(sample, image=torch.zeros_like(sample.image))
    if case == "half":
        sample = dataclasses.replace(sample, image=sample.image.half())
    if case == "dead maps":
        for branch in built.attention.branches:
            torch.nn.init.constant_(branch[1].bias, -1e3)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "mixed precision"):
        found = step(built, sample, pooling=pooling)
    found["loss"].backward()
    assert torch.isfinite(found["loss"])
    assert found["loss"].dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in built.parameters() if p.grad is not None)


def test_dead_maps_leave_the_views_as_they_were():
    built = network().eval()
    for branch in built.attention.branches:
        torch.nn.init.constant_(branch[1].bias, -1e3)
    found = step(built, batch(), reg="ce_mean")
    torch.testing.assert_close(found["regulariser"], found["cross_entropy"])


def train(built, steps, sample, **values):
    phase = METHOD.phases(config(**values))[0]
    optimiser = phase.optimiser(apply_freezing(built, phase))
    draw, losses = generator(), []
    for _ in range(steps):
        augmented = sample if phase.augment is None else phase.augment(sample, draw)
        found = phase.loss(built, augmented, draw)
        optimiser.zero_grad()
        found["loss"].backward()
        optimiser.step()
        losses.append(float(found["cross_entropy"].detach()))
        if losses[-1] < 0.05 and float(found["loss"].detach()) < 0.3:
            break
    return losses


@pytest.mark.parametrize("forward", ["joint", "separate"])
def test_learns_eight_samples_by_heart(forward):
    assert train(network(), 100, batch(8), forward=forward, lr=0.01)[-1] < 0.05


def test_same_seed_same_weights():
    states = []
    for _ in range(2):
        built = network(seed=3)
        train(built, 3, batch(), basic="subset")
        states.append(built.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    other = network(seed=3)
    loss = METHOD.phases(config())[0].loss
    first, second = (float(loss(other.eval(), batch(), generator(seed))["loss"].detach()) for seed in (1, 2))
    assert first != second


def test_saved_and_loaded_weights_answer_the_same(tmp_path):
    from safetensors.torch import load_file, save_file

    built, other = network(seed=1).eval(), network(seed=2).eval()
    save_file(built.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        assert torch.equal(built(images(2)).logits, other(images(2)).logits)


def test_preparation_sums_a_stand_in_rgb_stem_into_grey(tmp_path):
    torch.manual_seed(9)
    state = get_model("resnet18", weights=None).state_dict()  # random numbers in torchvision's layout
    torch.save(state, tmp_path / "stand_in.pth")
    built = network(weights=str(tmp_path / "stand_in.pth"))
    METHOD.phases(config(weights=str(tmp_path / "stand_in.pth")))[0].prepare(built, iter([batch()]))
    torch.testing.assert_close(built.backbone.trunk.conv1.weight, state["conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(built.backbone.trunk.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    with pytest.raises(TrainingError, match="do not exist"):
        METHOD.phases(config(weights="nowhere.pth"))[0].prepare(built, iter([batch()]))


def test_optimiser_and_schedule_follow_the_config():
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    plain = METHOD.phases(METHOD.config())[0]
    assert plain.schedule is None
    sgd = plain.optimiser(parameters)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (1e-3, 0.9, 1e-6)
    assert not sgd.defaults["nesterov"]
    code = METHOD.phases(config(nesterov=True, weight_decay=5e-4, schedule="multistep", epochs=150))[0]
    stepped = code.optimiser(parameters)
    assert stepped.defaults["nesterov"]
    schedule, rates = code.schedule(stepped), []
    for _ in range(150):
        rates.append(stepped.param_groups[0]["lr"])
        stepped.step()
        schedule.step()
    assert [rates[e] for e in (0, 74, 75, 124, 125, 149)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    adam = METHOD.phases(config(optimiser="adam", schedule="cosine"))[0]
    assert isinstance(adam.optimiser(parameters), torch.optim.Adam)


def test_basic_augmentation_is_for_training_alone_and_can_be_off():
    assert METHOD.phases(config())[0].augment is None
    augment = METHOD.phases(config(basic="subset"))[0].augment
    sample = batch(8)
    assert not torch.equal(augment(sample, generator()).image, sample.image)
    built = network(basic="subset").eval()
    assert torch.equal(built(images()).logits, built(images()).logits)


@pytest.mark.parametrize(
    ("spec", "values", "message"),
    [
        (dataclasses.replace(SPEC, shape=(48, 64)), {}, "at least 64"),
        (dataclasses.replace(SPEC, shape=(100, 100)), {}, "multiple of 32"),
        (dataclasses.replace(SPEC, shape=(224, 224)), {"backbone": "squeezenet1_1"}, "divide evenly"),
        (dataclasses.replace(SPEC, modality="ct_volume", shape=(64, 64, 64)), {}, "not ct_volume"),
        (dataclasses.replace(SPEC, classes=("covid19",)), {}, "two classes"),
    ],
)
def test_what_does_not_fit_is_refused(spec, values, message):
    with pytest.raises(ConfigError, match=message):
        METHOD.build(config(**values), spec)


@pytest.mark.parametrize(
    "values",
    [
        {"scales": [14]}, {"scales": [14, 7]}, {"scales": []}, {"backbone": "resnet"}, {"maps": 0}, {"lr": 0.0},
        {"theta": 1.5}, {"theta_box": [0.6, 0.4]}, {"theta_dim": [0.0, 0.5]}, {"gamma": -0.1}, {"reg": "l1"},
        {"reg_weight": -1.0}, {"augmentations": "AD"}, {"pooling": "max"}, {"forward": "one"}, {"basic": "all"},
        {"nesterov": True, "optimiser": "adam"}, {"brightness": [0.0, 1.0]}, {"rotate": [120, 0]}, {"theta_boxes": 1},
        {"root_eps": 0.0}, {"batch_size": "32"},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError):
        METHOD.build(config(**values), SPEC)


def test_small_image_at_use_is_refused():
    with pytest.raises(ValueError, match="at least 64"):
        network().eval()(torch.zeros(1, 1, 32, 64))


def test_each_ablation_changes_one_thing():
    from pathlib import Path

    from chestflow import profiles
    from chestflow.config import parse

    root = Path(__file__).parents[2]
    values = profiles.complete(profiles.read("mag_sd_ablations", root / "profiles"))
    profiles.check(parse(values))
    assert values["folds"] == [0, 1, 2, 3, 4]
    runs = {name: run for name, run in values["runs"].items() if run["method"] == "mag_sd"}
    base = runs.pop("mag_sd")
    assert base["config"] == {**registry.completed(METHOD, {}), "weights": "imagenet"}
    changes = set()
    for run in runs.values():
        flat = {**run, **run["config"]}
        differing = {k for k, v in {**base, **base["config"]}.items() if k != "config" and flat[k] != v}
        assert len(differing) == 1
        changes.add((key := differing.pop(), str(flat[key])))
    assert changes == {
        *(("recipe", "cxr_224_plain"), ("scales", "[7]"), ("scales", "[7, 14, 28]"), ("pooling", "gmp")),
        *(("pooling", "gap"), ("pooling", "attention_max"), ("augmentations", "AM"), ("augmentations", "AM+AD")),
        *(("augmentations", "AM+AP"), ("augmentations", "none"), ("reg", "l2"), ("reg", "ce_mean")),
    }
