"""Behaviour of COVIDNet: the invariants of its layers together, its training, its preparation."""

import dataclasses
import math

import pytest
import torch
from torchvision.models import get_model

from chestflow.errors import ConfigError, TrainingError
from chestflow.methods import registry
from chestflow.methods.registry import InputSpec
from chestflow.training.phases import apply_freezing
from tests.model.comparators import batch, generator, images

METHOD = registry.get("covidnet")
SPEC = InputSpec("cxr", (64, 64), ("non_covid", "covid19"))
SMALL = {"clusters": 4, "hidden": 32, "channels": 1, "optimiser": "adam", "lr": 1e-3, "oversample": 1}


def config(**values):
    return registry.configure(METHOD, {**SMALL, **values})


def network(seed=0, spec=SPEC, **values):
    torch.manual_seed(seed)
    return METHOD.build(config(**values), spec)


@pytest.mark.parametrize(
    ("backbone", "clusters", "millions"),
    [("resnet18", 16, 15.65), ("resnet18", 64, 28.28), ("resnet50", 16, 40.61), ("resnet50", 64, 91.14)],
)
def test_parameter_counts(backbone, clusters, millions):
    with torch.device("meta"):
        built = METHOD.build(METHOD.config(backbone=backbone, clusters=clusters), SPEC)
    assert round(sum(p.numel() for p in built.parameters()) / 1e6, 2) == millions


def test_defaults_are_the_papers():
    defaults = METHOD.config()
    assert (defaults.setting, defaults.lr, defaults.momentum, defaults.batch_size, defaults.epochs) == (
        ("D", 1e-4, 0.9, 48, 50)
    )
    assert (defaults.optimiser, defaults.weight_decay, defaults.schedule) == ("sgd", 0.0, "none")
    assert (defaults.spp_levels, defaults.clusters, defaults.hidden, defaults.oversample) == ((1, 2, 4), 16, 512, 5)
    deviating = {row["name"] for row in registry.deviations(METHOD, registry.completed(METHOD, {}))}
    assert deviating == {"weights", "cg_on"}


def names(setting, **values):
    return {n for n, _ in network(setting=setting, **values).named_parameters() if not n.startswith("backbone.")}


def test_settings_add_their_layers():
    plain = {"reduction.weight", "reduction.bias", "classifier.weight", "classifier.bias"}
    vlad = {"vlad.weight", "vlad.bias", "vlad.centres"}
    assert names("A") == plain
    assert names("B") == plain
    assert names("C") == plain | vlad
    assert names("D") - names("C") == {"gate.linear.weight", "gate.linear.bias"}
    assert names("C") < names("D")
    assert not hasattr(network(setting="A"), "pyramid")
    assert network(setting="B").reduction.in_features == 21 * 512


@pytest.mark.parametrize("setting", "ABCD")
@pytest.mark.parametrize("channels", [1, 3])
def test_any_channels_and_any_size(setting, channels):
    built = network(setting=setting, channels=channels).eval()
    for given, height, width in ((1, 64, 64), (3, 70, 101), (1, 64, 129)):
        with torch.no_grad():
            output = built(torch.rand(1, given, height, width) * 255)
        assert output.logits.shape == (1, 2)
        assert output.embedding.shape == (1, 32)
        assert output.features.shape[:2] == (1, 512)
        assert output.attention is None
        assert torch.isfinite(output.logits).all()


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "densenet121"])
def test_other_backbones(backbone):
    built = network(backbone=backbone).eval()
    assert built(images(1)).logits.shape == (1, 2)


def test_more_classes():
    spec = dataclasses.replace(SPEC, classes=("normal", "pneumonia", "covid19"))
    assert network(spec=spec)(images(2)).logits.shape == (2, 3)


@pytest.mark.parametrize("options", [{}, {"cg_on": "vlad"}, {"cg_norm": True}, {"setting": "A"}])
def test_answers_do_not_depend_on_the_batch(options):
    built = network(**options).eval()
    x = images(4)
    with torch.no_grad():
        together = built(x).logits
        apart = torch.cat([built(one[None]).logits for one in x])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_untrained_loss_is_log_two_and_the_embedding_is_the_classifiers_input():
    built = network(clusters=16, hidden=512)
    phase = METHOD.phases(config())[0]
    assert float(phase.loss(built, batch(), generator())["loss"].detach()) == pytest.approx(math.log(2), abs=0.05)
    output = built.eval()(images(2))
    torch.testing.assert_close(built.classifier(output.embedding), output.logits)


def test_gate_stands_where_the_option_says():
    reduced, whole = network(), network(cg_on="vlad")
    assert reduced.gate.linear.weight.shape == (32, 32)
    assert whole.gate.linear.weight.shape == (4 * 512, 4 * 512)
    assert "gate.norm.weight" in names("D", cg_norm=True)
    assert "gate.linear.bias" not in names("D", cg_norm=True)


def test_gate_too_wide_for_memory_is_refused_before_it_is_built():
    with pytest.raises(ConfigError, match=r"32768 values needs 4.0 GiB.*cg_on to reduced"):
        network(cg_on="vlad", clusters=64)


@pytest.mark.parametrize("setting", "ABCD")
@pytest.mark.parametrize("case", ["one image", "one class", "black", "half precision"])
def test_loss_and_gradients_stay_finite(setting, case):
    built = network(setting=setting).train()
    sample = batch(1 if case == "one image" else 4)
    if case == "one class":
        sample = dataclasses.replace(sample, target=torch.zeros_like(sample.target))
    if case == "black":
        sample = dataclasses.replace(sample, image=torch.zeros_like(sample.image))
    if case == "half precision":
        sample = dataclasses.replace(sample, image=sample.image.half())
    loss = METHOD.phases(config())[0].loss(built, sample, generator())["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in built.parameters() if p.grad is not None)


def test_extreme_logits_cost_a_finite_loss():
    built = network()
    torch.nn.init.zeros_(built.classifier.weight)
    for bias in ((60.0, -60.0), (-60.0, 60.0), (0.0, 0.0)):
        built.classifier.bias.data = torch.tensor(bias)
        assert torch.isfinite(METHOD.phases(config())[0].loss(built, batch(4), generator())["loss"])


def train(built, steps, sample, **values):
    phase = METHOD.phases(config(**values))[0]
    optimiser = phase.optimiser(apply_freezing(built, phase))
    draw, losses = generator(), []
    for _ in range(steps):
        augmented = sample if phase.augment is None else phase.augment(sample, draw)
        loss = phase.loss(built, augmented, draw)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        if losses[-1] < 0.05:
            break
    return losses


@pytest.mark.parametrize("setting", "AD")
def test_learns_eight_samples_by_heart(setting):
    built = network(setting=setting, backbone="resnet18")
    assert train(built, 100, batch(), setting=setting, augment=False)[-1] < 0.05


def test_same_seed_same_weights():
    states = []
    for _ in range(2):
        built = network(seed=3)
        train(built, 3, batch(4))
        states.append(built.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_frozen_backbone_gets_no_gradient_and_keeps_its_statistics():
    built = network(freeze_backbone=True)
    before = {k: v.clone() for k, v in built.backbone.state_dict().items()}
    train(built, 2, batch(4), freeze_backbone=True)
    assert all(p.grad is None for p in built.backbone.parameters())
    assert all(torch.equal(v, before[k]) for k, v in built.backbone.state_dict().items())
    assert built.gate.linear.weight.grad.abs().sum() > 0


def test_saved_and_loaded_weights_answer_the_same(tmp_path):
    from safetensors.torch import load_file, save_file

    built, other = network(seed=1).eval(), network(seed=2).eval()
    save_file(built.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        assert torch.equal(built(images(2)).logits, other(images(2)).logits)


def test_preparation_ties_the_centres_to_the_descriptors():
    built = network()
    before = {k: v.clone() for k, v in built.state_dict().items()}
    METHOD.phases(config())[0].prepare(built, iter([batch(), batch(seed=1)]))
    after = built.state_dict()
    changed = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed == {"vlad.weight", "vlad.bias", "vlad.centres"}
    alpha = -built.vlad.bias / built.vlad.centres.square().sum(1)
    torch.testing.assert_close(built.vlad.weight, 2 * alpha[:, None] * built.vlad.centres)
    again = network()
    METHOD.phases(config())[0].prepare(again, iter([batch(), batch(seed=1)]))
    assert all(torch.equal(v, after[k]) for k, v in again.state_dict().items())


def test_preparation_takes_the_named_alpha_and_can_be_off():
    built = network()
    METHOD.phases(config(vlad_alpha=7.0))[0].prepare(built, iter([batch()]))
    torch.testing.assert_close(built.vlad.weight, 14 * built.vlad.centres)
    untouched = network(vlad_init="random")
    centres = untouched.vlad.centres.clone()
    METHOD.phases(config(vlad_init="random"))[0].prepare(untouched, iter([batch()]))
    assert torch.equal(untouched.vlad.centres, centres)


def test_too_few_images_for_the_clusters_say_so():
    with pytest.raises(TrainingError, match="42 descriptors cannot make 64 clusters"):
        METHOD.phases(config(clusters=64))[0].prepare(network(clusters=64), iter([batch(2)]))


def test_preparation_loads_a_stand_in_for_pretrained_weights(tmp_path):
    torch.manual_seed(9)
    state = get_model("resnet18", weights=None).state_dict()  # random numbers in torchvision's layout
    torch.save(state, tmp_path / "stand_in.pth")
    built = network(channels=3)
    METHOD.phases(config(channels=3, weights=str(tmp_path / "stand_in.pth")))[0].prepare(built, iter([batch()]))
    assert torch.equal(built.backbone.trunk.conv1.weight, state["conv1.weight"])
    with pytest.raises(TrainingError, match="do not exist"):
        METHOD.phases(config(weights="nowhere.pth"))[0].prepare(built, iter([batch()]))


def test_rebuilding_needs_no_pretrained_file():
    assert network(weights="nowhere.pth", channels=3).eval()(images(1)).logits.shape == (1, 2)


def test_optimiser_and_schedule_follow_the_config():
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    sgd = METHOD.phases(METHOD.config())[0]
    assert sgd.schedule is None
    built = sgd.optimiser(parameters)
    assert isinstance(built, torch.optim.SGD)
    assert (built.defaults["lr"], built.defaults["momentum"]) == (1e-4, 0.9)
    adam = METHOD.phases(config(schedule="cosine", epochs=4))[0]
    stepped = adam.optimiser(parameters)
    schedule = adam.schedule(stepped)
    for _ in range(4):
        stepped.step()
        schedule.step()
    assert stepped.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_covid_is_drawn_five_times_as_often_and_the_rest_once():
    import pandas as pd

    table = pd.DataFrame({"row": range(30), "target": [1] * 4 + [0] * 26, "ratio": math.nan})
    for factor in (1, 5):
        drawn = [i for b in METHOD.phases(config(oversample=factor))[0].sampler(table, 8, generator()) for i in b]
        counts = [drawn.count(i) for i in range(30)]
        assert counts == [factor] * 4 + [1] * 26


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dataclasses.replace(SPEC, shape=(48, 64)), "at least 64"),
        (dataclasses.replace(SPEC, modality="ct_volume", shape=(64, 64, 64)), "not ct_volume"),
        (dataclasses.replace(SPEC, classes=("covid19",)), "two classes"),
    ],
)
def test_what_does_not_fit_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        METHOD.build(config(), spec)


@pytest.mark.parametrize(
    "values",
    [
        {"setting": "E"}, {"clusters": 0}, {"lr": 0.0}, {"momentum": 1.0}, {"vlad_alpha": 0.0}, {"flip": 2.0},
        {"spp_levels": [4, 2]}, {"epoch": 3}, {"batch_size": "48"},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError):
        (METHOD.build(config(**values), SPEC), METHOD.phases(config(**values)))


def test_small_image_at_use_is_refused():
    with pytest.raises(ValueError, match="at least 64"):
        network().eval()(torch.zeros(1, 1, 32, 64))
