"""Behaviour of the Nu-SVM comparator: the layer is scikit-learn's machine, restores whatever its size, and trains."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.svm import NuSVC

from chestflow.errors import ConfigError, TrainingError
from chestflow.imaging.cam import grad_cam
from chestflow.methods import registry
from chestflow.methods.registry import InputSpec
from chestflow.nn.knowledge_input import input_layer
from chestflow.nn.nu_svm import NuSvm, nu_bound
from chestflow.training import engine
from chestflow.training.phases import apply_freezing
from tests import toy
from tests.model.own_networks import assert_answers_ignore_the_batch, batch, images, train

METHOD = registry.get("saeedi")
SPEC = InputSpec("ct_slice", (64, 64), ("non_covid", "covid19"))
SMALL = {"backbone": "squeezenet1_1", "channels": 1, "epochs": 2, "batch_size": 8}


def config(**values):
    return registry.configure(METHOD, {**SMALL, **values})


def network(seed=0, **values):
    torch.manual_seed(seed)
    return METHOD.build(config(**values), SPEC)


def prepared(sample=None, **values):
    built = network(**values)
    METHOD.phases(config(**values))[0].prepare(built, iter([sample or batch()]))
    return built


def points(count=40, size=5, seed=0):
    rng = np.random.default_rng(seed)
    target = np.arange(count) % 2
    return rng.normal(size=(count, size)) * [1, 1, 1, 50, 1] + target[:, None] * [1.5, 0, 0, 0, 1], target


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("gamma", [None, 0.3])
def test_the_layer_decides_as_scikit_learns_machine(scale, gamma):
    vectors, target = points()
    layer = NuSvm(5)
    layer.fit(vectors, target, nu=0.4, gamma=gamma, scale=scale)
    seen = (vectors - vectors.mean(0)) / vectors.std(0) if scale else vectors
    fitted = NuSVC(nu=0.4, gamma=gamma or "scale", tol=1e-5).fit(seen, target)
    fresh, _ = points(seed=1)
    shown = (fresh - vectors.mean(0)) / vectors.std(0) if scale else fresh
    found = layer(layer.standardised(torch.from_numpy(fresh)))
    torch.testing.assert_close(found, torch.from_numpy(fitted.decision_function(shown)).float(), atol=2e-3, rtol=1e-3)
    assert len(layer.support) == len(fitted.support_) >= 0.4 * len(target)


def test_what_does_not_vary_does_not_count():
    vectors, target = points()
    vectors[:, 2] = 7.0
    layer = NuSvm(5)
    layer.fit(vectors, target, nu=0.4, gamma=None, scale=True)
    assert torch.isfinite(layer(layer.standardised(torch.from_numpy(vectors)))).all()
    assert float(layer.deviation[2]) == 1.0


@pytest.mark.parametrize(("positives", "bound"), [(5, 0.5), (10, 1.0), (1, 0.1), (19, 0.1)])
def test_below_the_bound_nu_is_feasible_and_from_there_refused(positives, bound):
    vectors, _ = points(20)
    target = (np.arange(20) < positives).astype(np.int64)
    assert nu_bound(target) == pytest.approx(bound)
    layer = NuSvm(5)
    layer.fit(vectors, target, nu=0.98 * bound, gamma=None, scale=True)
    assert len(layer.support) > 0
    with pytest.raises(ConfigError, match=f"nu is {bound}; with {positives} of 20 .* below {bound:.4g}.*lower nu"):
        layer.fit(vectors, target, nu=bound, gamma=None, scale=True)


def test_one_class_alone_is_refused():
    with pytest.raises(ConfigError, match="below 0"):
        NuSvm(5).fit(points()[0], np.ones(40, np.int64), nu=0.4, gamma=None, scale=True)


def test_features_that_say_nothing_are_said():
    with pytest.raises(TrainingError, match="cannot be fitted"):
        NuSvm(5).fit(np.full((4, 5), np.nan), np.array([0, 1, 0, 1]), nu=0.4, gamma=1.0, scale=True)


def test_class_weights_would_change_nothing():
    """The published code gives them; libsvm's Nu-SVM does not read them."""
    vectors, target = points(31)
    plain, weighted = (NuSVC(nu=0.3, class_weight=w).fit(vectors, target) for w in (None, {0: 1.0, 1: 5.0}))
    assert np.array_equal(plain.decision_function(vectors), weighted.decision_function(vectors))


def test_defaults_and_what_deviates_from_the_published_code():
    defaults = METHOD.config()
    assert (defaults.backbone, defaults.nu) == ("densenet121", 0.4)
    rows = registry.deviations(METHOD, registry.completed(METHOD, {}))
    literal = {"weights": "imagenet", "gamma": 0.00988, "standardise": False}
    assert {row["name"]: row["paper"] for row in rows} == literal
    assert registry.deviations(METHOD, registry.completed(METHOD, literal)) == []


def test_it_sees_what_a_pretraining_saw():
    """A pretraining's statistics are the same as those of the runs that start from it."""
    halves = torch.tensor([0.0, 255.0]).repeat(1, 1, 2, 2)
    seen = network(normalise="selftrans").input(halves)
    assert seen.unique().tolist() == pytest.approx([-0.4527 / 0.3317, 0.5473 / 0.3317], abs=1e-5)
    assert torch.equal(seen, input_layer("selftrans", 1)(halves))
    with pytest.raises(ConfigError, match="choose one of"):
        config(normalise="zscore_column")


@pytest.mark.parametrize(("backbone", "width"), [("densenet121", 1024), ("densenet169", 1664), ("densenet201", 1920)])
def test_published_widths_on_the_meta_device(backbone, width):
    with torch.device("meta"):
        built = METHOD.build(METHOD.config(backbone=backbone), dataclasses.replace(SPEC, shape=(224, 224)))
        output = built(torch.zeros(2, 1, 224, 224))
    assert output.logits.shape == (2, 1)
    assert output.embedding.shape == (2, width)
    assert output.features.shape == (2, width, 7, 7)


def test_untrained_answers_are_undecided():
    assert torch.equal(network().eval()(images(3)).logits, torch.zeros(3, 1))


def test_only_platts_sigmoid_trains():
    built = prepared()
    phase = METHOD.phases(config())[0]
    assert [id(p) for p in apply_freezing(built, phase)] == [id(p) for p in built.platt.parameters()]
    assert not built.backbone.training
    before = {k: v.clone() for k, v in built.state_dict().items()}
    train(built, dataclasses.replace(phase, prepare=None), 3, batch())
    changed = {k for k, v in built.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"platt.weight", "platt.bias"}


def test_platts_sigmoid_keeps_the_order_of_the_decisions():
    built = prepared()
    train(built, dataclasses.replace(METHOD.phases(config())[0], prepare=None), 20, batch())
    with torch.no_grad():
        output = built.eval()(images(8, seed=4))
    assert float(built.platt.weight.detach()) > 0
    assert torch.equal(output.logits[:, 0].argsort(), built.svm(output.embedding).argsort())


def test_learns_eight_samples_by_heart():
    losses = train(network(nu=0.2), METHOD.phases(config(nu=0.2, lr=0.5))[0], 100, batch(), goal=0.05)
    assert losses[-1] < 0.05


def test_the_fit_does_not_depend_on_the_order_of_the_batches():
    sample = batch()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    parts = [order[:3], order[3:]]

    def taken(chosen):
        fields = {f.name: getattr(sample, f.name) for f in dataclasses.fields(sample)}
        return dataclasses.replace(sample, **{k: v[chosen] for k, v in fields.items() if isinstance(v, torch.Tensor)})

    one, other = prepared(), network()
    METHOD.phases(config())[0].prepare(other, iter([taken(p) for p in parts]))
    x = images(4, seed=2)
    with torch.no_grad():
        torch.testing.assert_close(one.eval()(x).logits, other.eval()(x).logits, atol=1e-4, rtol=1e-3)


def test_answers_ignore_the_batch():
    assert_answers_ignore_the_batch(prepared(), images(4))


def test_decisions_are_float32_under_mixed_precision():
    built = prepared().eval()
    with torch.no_grad():
        exact = built(images(2)).logits
        with torch.autocast("cpu", torch.bfloat16):
            found = built.svm(built(images(2)).embedding)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert exact.dtype == torch.float32


def test_grad_cam_reaches_through_the_kernel():
    built = prepared().eval()
    output = built(images(2).requires_grad_())
    heat = grad_cam(output, 1)
    assert heat.shape == (2, 1, *output.features.shape[2:])
    assert torch.isfinite(heat).all()
    gradient = torch.autograd.grad(output.logits.sum(), output.features)[0]
    assert gradient.abs().sum() > 0


def test_saved_weights_restore_whatever_the_number_of_support_vectors(tmp_path):
    from chestflow.training.restore import load_network, save_network

    built = prepared()
    assert len(built.svm.support) > 0
    spec = {"modality": "ct_slice", "shape": [64, 64], "classes": list(SPEC.classes)}
    save_network(tmp_path, built, {"method": "saeedi", "config": registry.completed(METHOD, SMALL), "input": spec})
    restored, _ = load_network(tmp_path)
    x = images(3, seed=5)
    with torch.no_grad():
        assert torch.equal(restored(x).logits, built.eval()(x).logits)
    # and a machine that was fitted before takes the other's size
    again = prepared(batch(4), nu=0.5)
    again.load_state_dict(built.state_dict())
    assert torch.equal(again.svm.support, built.svm.support)
    wrong = {k: v[:, :7] if k == "svm.support" else v for k, v in built.state_dict().items()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        again.load_state_dict(wrong)


def test_it_can_take_the_global_branchs_place():
    """Paper 003 fuses its features: the fitted machine is loaded whole, whatever its size, and stays as it is."""
    knowledge = registry.get("multi_knowledge")
    used = {"method": "saeedi", "config": registry.completed(METHOD, SMALL), "dropped": []}
    used["input"] = {"modality": "ct_slice", "shape": [64, 64], "classes": list(SPEC.classes)}
    values = {"backbone": "squeezenet1_1", "channels": 1, "normalise": "imagenet", "global_branch": "run"}
    spec = dataclasses.replace(SPEC, uses={"global": used})
    built = knowledge.build(registry.configure(knowledge, values), spec)
    theirs = prepared()
    built.get_submodule("global_branch.network").load_state_dict(theirs.state_dict())
    with torch.no_grad():
        output = built.eval()(images(2), None, None)
    assert output.embedding.shape == (2, 4 * 512)
    torch.testing.assert_close(output.embedding[:, :512], theirs.eval()(images(2)).embedding)


def test_the_engine_fits_checkpoints_and_keeps_the_machine(tmp_path):
    pack, target = toy.make_pack(24, (64, 64))
    data = engine.Data(pack, toy.table(range(16), target), toy.table(range(16, 24), target))
    threads = torch.get_num_threads()
    results = [
        engine.fit(network(), METHOD.phases(config()), data, toy.settings(), seed=1, folder=tmp_path / n) for n in "ab"
    ]
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    first, second = (r.network.state_dict() for r in results)
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert len(results[0].network.svm.support) > 0
    assert len(results[0].epochs) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dataclasses.replace(SPEC, classes=("normal", "cap", "covid19")), "two classes.*binary task"),
        (dataclasses.replace(SPEC, shape=(48, 64)), "at least 64"),
        (dataclasses.replace(SPEC, modality="ct_volume", shape=(64, 64, 64)), "not ct_volume"),
    ],
)
def test_what_does_not_fit_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        METHOD.build(config(), spec)


@pytest.mark.parametrize("values", [{"nu": 0.0}, {"nu": 1.1}, {"gamma": 0.0}, {"epochs": 0}, {"lr": 0.0}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError):
        config(**values)


def test_a_class_too_small_for_nu_is_said():
    sample = batch()
    rare = dataclasses.replace(sample, target=torch.tensor([1, 0, 0, 0, 0, 0, 0, 0]))
    with pytest.raises(ConfigError, match=r"nu is 0.4; with 1 of 8 .* below 0.25"):
        prepared(rare)
