"""Behaviour of the dual-sampling attention network: its attention, its loss, its training."""

import dataclasses
import math

import pandas as pd
import pytest
import torch

from chestflow.errors import ConfigError
from chestflow.losses.attention import overlap_loss, soft_mask
from chestflow.methods import registry
from chestflow.methods.dual_sampling import attended_loss
from chestflow.methods.registry import InputSpec
from chestflow.nn.output import Output
from chestflow.training.phases import Batch, apply_freezing

METHOD = registry.get("dual_sampling")
SIZE = (32, 48, 48)
SPEC = InputSpec("ct_volume", SIZE, ("cap", "covid19"))
SMALL = {"depth": 10, "width": 4, "lr": 5e-3}


def config(**values):
    return registry.configure(METHOD, {**SMALL, **values})


def network(seed=0, **values):
    torch.manual_seed(seed)
    return METHOD.build(config(**values), SPEC)


def batch(count=8, seed=0, size=SIZE):
    """Lungs full of air; each has a lesion, bright and low in the odd (COVID-19) ones, faint and high in the others."""
    draw = torch.Generator().manual_seed(seed)
    image = -850 + 60 * torch.randn(count, 1, *size, generator=draw)
    infection = torch.zeros_like(image)
    d, h, w = size
    infection[1::2, :, : d // 2, h // 2 :, : w // 2] = 1
    infection[0::2, :, d // 2 :, : h // 2, w // 2 :] = 1
    image = image + 700 * infection
    return Batch(
        image=image,
        target=torch.arange(count) % 2,
        lung=torch.ones_like(image),
        infection=infection,
        has_infection=torch.ones(count, dtype=torch.bool),
        ratio=torch.full((count,), 0.01),
        rows=torch.arange(count),
    )


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 63_470_145),
        ({"shortcut": "A"}, 63_296_321),
        ({"last_stride": 2}, 63_470_145),
        ({"attention": False}, 63_470_145),
    ],
)
def test_parameter_counts_of_the_paper_network(options, count):
    with torch.device("meta"):
        built = METHOD.build(METHOD.config(**options), SPEC)
    assert sum(p.numel() for p in built.parameters()) == count


def test_paper_volume_gives_the_paper_map():
    with torch.device("meta"):
        built = METHOD.build(METHOD.config(), SPEC)
        output = built(torch.empty(1, 1, 138, 256, 256), torch.empty(1, 1, 138, 256, 256))
    assert output.features.shape == (1, 512, 9, 16, 16)
    assert output.attention.shape == (1, 1, 9, 16, 16)
    assert output.logits.shape == (1, 1)
    assert output.embedding.shape == (1, 512)


def test_defaults_are_the_papers():
    d = METHOD.config()
    assert (d.depth, d.width, d.last_stride, d.alpha, d.beta, d.lam) == (34, 64, 1, 100.0, 0.4, 0.5)
    assert (d.lr, d.lr_step, d.lr_gamma, d.weight_decay, d.batch_size, d.epochs) == (2e-4, 5, 0.1, 1e-4, 20, 20)
    assert (d.sampling_mode, d.covid_cut, d.cap_cut) == ("group_first", 0.030, 0.001)
    assert registry.deviations(METHOD, registry.completed(METHOD, {})) == []


def linear_map(built, output):
    return torch.einsum("f,bf...->b...", built.head.fc.weight[-1], output.features)


def test_activation_map_averages_to_the_logit_before_and_after_a_step():
    built, sample = network(), batch(4)
    phase = METHOD.phases(config())[0]
    optimiser = phase.optimiser(apply_freezing(built, phase))
    for _ in range(3):
        built.eval()
        output = built(sample.image, sample.lung)
        average = linear_map(built, output).flatten(1).mean(1) + built.head.fc.bias
        torch.testing.assert_close(average, output.logits[:, 0], atol=1e-5, rtol=1e-4)
        expected = torch.relu(linear_map(built, output))[:, None]
        torch.testing.assert_close(output.attention, expected, atol=1e-5, rtol=1e-4)  # no stale copy of the weight
        apply_freezing(built, phase)
        optimiser.zero_grad()
        phase.loss(built, sample, generator())["loss"].backward()
        optimiser.step()


@pytest.mark.parametrize("outputs", [1, 2])
def test_attention_loss_teaches_the_backbone_and_never_the_classifier(outputs):
    built, sample = network(num_outputs=outputs).eval(), batch(4)
    output = built(sample.image, sample.lung)
    assert output.logits.shape == (4, outputs)
    overlap_loss(soft_mask(output.attention, SIZE, alpha=5.0), sample.infection).mean().backward()
    assert built.head.fc.weight.grad is None
    assert built.head.fc.bias.grad is None
    assert sum(float(p.grad.abs().sum()) for p in built.backbone.parameters() if p.grad is not None) > 0


def test_bias_has_no_part_in_the_map():
    built, sample = network().eval(), batch(2)
    with torch.no_grad():
        before = built(sample.image).attention
        built.head.fc.bias += 3.0
        assert torch.equal(built(sample.image).attention, before)


def test_two_outputs_take_the_covid_row_and_cross_entropy():
    settings = config(num_outputs=2)
    built, sample = network(num_outputs=2).eval(), batch(4)
    output = built(sample.image, sample.lung)
    torch.testing.assert_close(output.attention[:, 0], torch.relu(linear_map(built, output)), atol=1e-5, rtol=1e-4)
    parts = attended_loss(settings, output, sample)
    expected = torch.nn.functional.cross_entropy(output.logits, sample.target)
    torch.testing.assert_close(parts["classification"], expected.detach())


def fixed(count=4):
    """An output that no network made, so that losses can be followed by hand."""
    draw = torch.Generator().manual_seed(5)
    cam = torch.rand(count, 1, 2, 3, 3, generator=draw)
    return Output(torch.randn(count, 1, generator=draw), attention=cam)


def test_loss_is_classification_plus_lambda_times_attention():
    sample, output = batch(4), fixed()
    parts = attended_loss(config(), output, sample)
    each = overlap_loss(soft_mask(output.attention, SIZE), sample.infection)
    attention = (each[1] + each[3]) / 2  # COVID-19 stands at the odd places
    bce = torch.nn.functional.binary_cross_entropy_with_logits(output.logits[:, 0], sample.target.float())
    torch.testing.assert_close(parts["attention"], attention)
    torch.testing.assert_close(parts["loss"], bce + 0.5 * attention)
    assert float(parts["covid_without_infection"]) == 0


@pytest.mark.parametrize("case", ["cap only", "lambda zero", "no attention", "no masks", "empty masks"])
def test_loss_is_classification_alone_where_attention_has_no_say(case):
    sample, output, settings = batch(4), fixed(), config()
    if case == "cap only":
        sample = dataclasses.replace(sample, target=torch.zeros_like(sample.target))
    elif case == "lambda zero":
        settings = config(lam=0.0)
    elif case == "no attention":
        output = dataclasses.replace(output, attention=None)
    elif case == "no masks":
        sample = dataclasses.replace(sample, infection=None, has_infection=torch.zeros(4, dtype=torch.bool))
    else:
        sample = dataclasses.replace(sample, infection=torch.zeros_like(sample.infection))
    parts = attended_loss(settings, output, sample)
    assert torch.equal(parts["loss"], parts["classification"])
    if case in ("no masks", "empty masks"):
        assert float(parts["covid_without_infection"]) == 2


def test_samples_without_a_mask_are_left_out():
    sample, output = batch(4), fixed()
    sample = dataclasses.replace(sample, has_infection=torch.tensor([True, True, True, False]))
    each = overlap_loss(soft_mask(output.attention, SIZE), sample.infection)
    parts = attended_loss(config(), output, sample)
    torch.testing.assert_close(parts["attention"], each[1])
    assert float(parts["covid_without_infection"]) == 1


def test_empty_mask_counts_where_asked():
    sample, output = batch(4), fixed()
    sample.infection[3] = 0
    t = soft_mask(output.attention, SIZE)
    each = overlap_loss(t, sample.infection)
    torch.testing.assert_close(attended_loss(config(), output, sample)["attention"], each[1])
    kept = attended_loss(config(skip_empty=False), output, sample)["attention"]
    torch.testing.assert_close(kept, (each[1] + each[3]) / 2)


@pytest.mark.parametrize("scale", [0.0, 60.0])
@pytest.mark.parametrize("case", ["usual", "one sample", "one class", "dead map"])
def test_loss_and_gradients_stay_finite(case, scale):
    count = 1 if case == "one sample" else 4
    sample = batch(count)
    if case == "one class":
        sample = dataclasses.replace(sample, target=torch.ones_like(sample.target))
    logits = (scale * torch.tensor([[1.0], [-1.0], [-1.0], [1.0]])[:count]).requires_grad_()
    cam = torch.full((count, 1, 2, 3, 3), 0.0 if case == "dead map" else 1.0)
    cam[:, :, 0, 0, 0] = 0.0
    cam.requires_grad_()
    parts = attended_loss(config(), Output(logits, attention=cam), sample)
    parts["loss"].backward()
    assert torch.isfinite(parts["loss"])
    assert torch.isfinite(logits.grad).all()
    assert cam.grad is None or torch.isfinite(cam.grad).all()


def test_untrained_losses():
    torch.manual_seed(0)
    built, sample = METHOD.build(config(width=16), SPEC), batch(4)
    with torch.no_grad():  # near 0 every answer is even; the map's scale has no part in its loss
        built.head.fc.weight *= 0.01
        built.head.fc.bias.zero_()
    sample.infection[:] = 0
    sample.infection[..., 4:10, 20:28, 20:28] = 1  # a small lesion
    parts = METHOD.phases(config())[0].loss(built, sample, generator())
    assert float(parts["classification"]) == pytest.approx(math.log(2), abs=0.02)
    assert 0.8 <= float(parts["attention"]) <= 1.0


def train(built, steps, sample, **values):
    phase = METHOD.phases(config(**values))[0]
    optimiser = phase.optimiser(apply_freezing(built, phase))
    losses = []
    for _ in range(steps):
        parts = phase.loss(built, sample, generator())
        optimiser.zero_grad()
        parts["loss"].backward()
        optimiser.step()
        losses.append({k: float(v.detach()) for k, v in parts.items()})
        if losses[-1]["classification"] < 0.05 and len(losses) >= 30:
            break
    return losses


def test_learns_eight_samples_by_heart_and_looks_at_the_lesions():
    losses = train(network(width=8), 100, batch())
    assert losses[-1]["classification"] < 0.05
    assert losses[-1]["attention"] < losses[0]["attention"] - 0.2


def test_plain_network_has_no_map_and_learns_too():
    built = network(attention=False)
    assert built(batch(2).image).attention is None
    assert set(METHOD.phases(config(attention=False))[0].loss(built, batch(2), generator())) == {
        "loss",
        "classification",
    }
    assert train(built, 100, batch(), attention=False)[-1]["classification"] < 0.05


@pytest.mark.parametrize("options", [{}, {"checkpointing": True}])
def test_same_seed_same_weights(options):
    states = []
    for _ in range(2):
        built = network(seed=3)
        train(built, 3, batch(2))
        states.append(built.state_dict())
    saving = network(seed=3, **options)
    train(saving, 3, batch(2), **options)
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
        assert torch.equal(value, saving.state_dict()[key]), key


def test_answers_do_not_depend_on_the_batch():
    built, sample = network().eval(), batch(3)
    with torch.no_grad():
        together = built(sample.image, sample.lung)
        apart = [built(i[None], m[None]) for i, m in zip(sample.image, sample.lung, strict=True)]
    torch.testing.assert_close(together.logits, torch.cat([o.logits for o in apart]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.attention, torch.cat([o.attention for o in apart]), atol=1e-5, rtol=1e-4)


def test_what_lies_outside_the_lungs_is_not_seen():
    built, sample = network().eval(), batch(1)
    lung = torch.zeros_like(sample.image)
    lung[..., 8:40] = 1
    changed = torch.where(lung > 0, sample.image, torch.full_like(sample.image, 100.0))
    with torch.no_grad():
        assert torch.equal(built(sample.image, lung).logits, built(changed, lung).logits)
        assert not torch.equal(built(sample.image).logits, built(changed).logits)


def test_mirrored_volume_gives_the_mirrored_map():
    """With kernels made symmetric along x and an odd side, the network commutes with mirroring left and right."""
    built = network().eval()
    with torch.no_grad():
        for module in built.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
        x = batch(2, size=(32, 48, 49)).image
        torch.testing.assert_close(built(x.flip(-1)).attention, built(x).attention.flip(-1), atol=1e-4, rtol=1e-3)


def test_saved_and_loaded_weights_answer_the_same(tmp_path):
    from safetensors.torch import load_file, save_file

    built, other, sample = network(seed=1).eval(), network(seed=2).eval(), batch(1)
    save_file(built.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        assert torch.equal(built(sample.image).logits, other(sample.image).logits)


def test_bfloat16_keeps_the_loss_in_float32():
    built, sample = network(), batch(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = METHOD.phases(config())[0].loss(built, sample, generator())
    assert {v.dtype for v in parts.values()} == {torch.float32}
    assert all(torch.isfinite(v) for v in parts.values())


def test_learning_rate_falls_every_five_epochs():
    phase = METHOD.phases(METHOD.config())[0]
    optimiser = phase.optimiser([torch.nn.Parameter(torch.zeros(1))])
    schedule, rates = phase.schedule(optimiser), []
    for _ in range(20):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    expected = [2e-4] * 5 + [2e-5] * 5 + [2e-6] * 5 + [2e-7] * 5
    assert rates == pytest.approx(expected)


def test_weight_decay_is_coupled_unless_asked():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    assert type(METHOD.phases(config())[0].optimiser(parameters)) is torch.optim.Adam
    assert type(METHOD.phases(config(decoupled_weight_decay=True))[0].optimiser(parameters)) is torch.optim.AdamW


def test_sampling_follows_the_config():
    ratio = [0.0005] * 15 + [0.01] * 10 + [0.1] * 15  # small and large of both classes
    table = pd.DataFrame({"row": range(40), "target": [0] * 20 + [1] * 20, "ratio": ratio})
    drawn = {
        kind: [i for b in METHOD.phases(config(sampling=kind))[0].sampler(table, 8, generator()) for i in b]
        for kind in ("uniform", "size_balanced")
    }
    assert sorted(drawn["uniform"]) == list(range(40))
    assert len(drawn["size_balanced"]) == 40
    assert sorted(drawn["size_balanced"]) != list(range(40))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (InputSpec("cxr", (96, 96), ("cap", "covid19")), "not cxr"),
        (InputSpec("ct_volume", (8, 48, 48), ("cap", "covid19")), "at least 16"),
        (InputSpec("ct_volume", SIZE, ("normal", "cap", "covid19")), "two classes"),
    ],
)
def test_what_does_not_fit_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        METHOD.build(config(), spec)


@pytest.mark.parametrize(
    "values",
    [
        {"depth": 50}, {"shortcut": "C"}, {"beta": 1.5}, {"lam": -1.0}, {"alpha": 0.0}, {"width": 0},
        {"window_width": 0.0}, {"sampling": "dual"}, {"lambda": 0.5},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError):
        METHOD.build(config(**values), SPEC)


#: The rows of the paper's Table II that are single networks, and RN34+SS, which it leaves out.
ROWS = {
    "RN34+US": {"attention": False},
    "RN34+SS": {"attention": False, "sampling": "size_balanced"},
    "Attention RN34+US": {},
    "Attention RN34+SS": {"sampling": "size_balanced"},
}


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_the_table_differ_in_attention_and_sampling_alone(row):
    from chestflow.imaging.cam import grad_cam

    options = ROWS[row]
    built, sample = network(**options).eval(), batch(4)
    output = built(sample.image.requires_grad_(), sample.lung)
    parts = attended_loss(config(**options), output, sample)
    attended = "attention" not in options
    assert (output.attention is not None) == attended == ("attention" in parts)
    if not attended:  # no L_ex, and the figures' maps are Grad-CAM of the last map
        torch.testing.assert_close(parts["loss"], parts["classification"])
        assert grad_cam(output, 1).shape == (4, 1, *output.features.shape[2:])
    weights = {name: tuple(value.shape) for name, value in built.state_dict().items()}
    assert weights == {name: tuple(value.shape) for name, value in network().state_dict().items()}
    table = pd.DataFrame({"row": range(40), "target": [0, 1] * 20, "ratio": [0.0005, 0.02, 0.05, 0.2] * 10})
    drawn = [i for chunk in METHOD.phases(config(**options))[0].sampler(table, 8, generator()) for i in chunk]
    assert len(drawn) == 40
    assert (sorted(drawn) == list(range(40))) == (options.get("sampling") is None)  # uniform: each once
