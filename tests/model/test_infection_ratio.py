"""The ratio-only baseline: it counts, fits exactly, knows what it does not know, and trains by the one engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from chestflow.errors import ConfigError
from chestflow.evaluation.subgroups import ratio_feature
from chestflow.methods import registry
from chestflow.methods.infection_ratio import fitted, ratio_of
from chestflow.methods.registry import InputSpec
from chestflow.training.phases import Batch, respond, unknown_as_nan
from chestflow.training.restore import load_network
from chestflow.training.run import train_run
from tests.model import toy_models

METHOD = registry.get("infection_ratio")
SPEC = InputSpec("ct_volume", (8, 8, 8), ("cap", "covid19"))
CONFIG = METHOD.config()


def batch(ratios: list[float | None], side: int = 10) -> Batch:
    """Volumes whose lower half is lung; ``None`` has no infection mask."""
    shape = (len(ratios), 1, side, side, side)
    lung, infection = torch.zeros(shape), torch.zeros(shape)
    lung[:, :, side // 2 :] = 1
    inside = side**3 // 2
    for i, ratio in enumerate(ratios):
        infection[i].view(-1)[inside : inside + round((ratio or 0) * inside)] = 1
    return Batch(
        image=torch.zeros(shape), target=torch.arange(len(ratios)) % 2, lung=lung, infection=infection,
        has_infection=torch.tensor([r is not None for r in ratios]), ratio=torch.full((len(ratios),), torch.nan),
        rows=torch.arange(len(ratios)),
    )  # fmt: skip


def network(ratios: list[float], positive: list[bool]) -> torch.nn.Module:
    built = METHOD.build(CONFIG, SPEC)
    values = fitted(CONFIG, np.array(ratios), np.array(positive))
    built.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    return built.eval()


RATIOS = [0.0, 0.002, 0.004, 0.01, 0.02, 0.05, 0.1, 0.2, 0.012, 0.03, 0.08, 0.15]
POSITIVE = [False, False, True, False, True, False, True, True, False, False, True, True]


def test_it_counts_what_is_there() -> None:
    one = batch([0.0, 0.002, 0.1, 1.0, None])
    found = ratio_of(one.image, one.lung, unknown_as_nan(one))
    np.testing.assert_allclose(found[:4], [0.0, 0.002, 0.1, 1.0], rtol=1e-5)
    assert torch.isnan(found[4])


@pytest.mark.parametrize("lung", [None, 0.0, 1.0])
def test_without_lungs_the_ratio_is_unknown(lung: float | None) -> None:
    one = batch([0.1])
    mask = None if lung is None else torch.full_like(one.image, lung)
    assert torch.isnan(ratio_of(one.image, mask, one.infection)).all()
    assert torch.isnan(ratio_of(one.image, one.lung, None)).all()


def test_infection_outside_the_lungs_counts_as_lung() -> None:
    one = batch([0.0])
    one.infection[0, 0, 0] = 1  # a whole slice above the lungs
    found = float(ratio_of(one.image, one.lung, one.infection))
    assert found == pytest.approx(100 / 600)


def test_it_is_the_logistic_regression_that_evaluation_fits() -> None:
    built = network(RATIOS, POSITIVE)
    own = LogisticRegression(C=1e6, max_iter=1000).fit(ratio_feature(np.array(RATIOS)), POSITIVE)
    asked = [0.0, 0.002, 0.03, 0.2]
    one = batch(asked)
    expected = own.decision_function(ratio_feature(np.array(asked)))
    np.testing.assert_allclose(respond(built, one).logits[:, 0].detach(), expected, atol=0.02)


def test_more_infection_never_means_less_of_the_class_that_has_more() -> None:
    built = network(RATIOS, POSITIVE)
    logits = respond(built, batch([0.0, 0.002, 0.01, 0.05, 0.2, 1.0])).logits[:, 0]
    assert (logits.diff() > 0).all()


def test_unknown_infection_gets_the_prior_and_an_empty_mask_does_not() -> None:
    built = network([*RATIOS, float("nan")], [*POSITIVE, True])
    with torch.no_grad():
        output = respond(built, batch([None, 0.0]))
    prior = np.log((7 + 0.5) / (13 + 1) / (1 - (7 + 0.5) / (13 + 1)))
    assert float(output.logits[0]) == pytest.approx(prior, abs=1e-6)
    assert float(output.logits[1]) < -1
    assert float(output.embedding[0]) == 0  # as usual as can be
    one = batch([0.1])
    assert float(built(one.image, one.lung).logits.detach()) == pytest.approx(prior, abs=1e-6)


@pytest.mark.parametrize(
    ("ratios", "positive"),
    [
        ([0.1] * 4, [True, False] * 2),  # too few
        ([float("nan")] * 20, [True, False] * 10),
        ([0.05] * 20, [True, False] * 10),  # all alike
        ([0.05] * 20, [True] * 20),
    ],
)
def test_nothing_to_fit_leaves_the_prior(ratios: list[float], positive: list[bool]) -> None:
    values = fitted(CONFIG, np.array(ratios), np.array(positive))
    assert values["slope"] == 0
    assert values["intercept"] == values["prior"]
    assert np.isfinite(list(values.values())).all()


def test_a_ratio_that_tells_all_stays_finite() -> None:
    values = fitted(CONFIG, np.array([0.001] * 10 + [0.1] * 10), np.repeat([False, True], 10))
    assert np.isfinite(list(values.values())).all()
    assert values["slope"] > 1


def test_answers_do_not_depend_on_the_rest_of_the_batch() -> None:
    built, whole = network(RATIOS, POSITIVE), [0.0, 0.01, None, 0.2]
    together = respond(built, batch(whole)).logits
    alone = torch.cat([respond(built, batch([r])).logits for r in whole])
    torch.testing.assert_close(together, alone)


def test_the_image_is_not_looked_at() -> None:
    built, one = network(RATIOS, POSITIVE), batch([0.01, 0.2])
    before = respond(built, one).logits
    one.image += torch.randn(one.image.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(before, respond(built, one).logits)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (InputSpec("cxr", (64, 64), ("rest", "covid19")), "counts masks on CT"),
        (InputSpec("ct_volume", (8, 8, 8), ("normal", "cap", "covid19")), "tells two classes apart"),
    ],
)
def test_what_cannot_work_is_refused(spec: InputSpec, message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        METHOD.build(CONFIG, spec)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        registry.configure(METHOD, {"epsilon": 0.0})


def write_outs(out: Path) -> None:
    """The toys' outs, with their infections in the volumes' pack; one test volume has none."""
    toy_models.write_outs(out)
    folder = out / "packs" / "cube"
    masks, index = np.load(folder / "masks.npy"), pd.read_parquet(folder / "index.parquet")
    from chestflow.data.recipes import nearest

    for i in range(len(masks)):
        _, infection = toy_models.ct(i, i % 2 == 1)
        content = nearest(infection, masks[i].shape)
        masks[i][(masks[i] > 0) & content] |= 2
    index["has_infection"] = index["row"] != 60
    np.save(folder / "masks.npy", masks)
    index.to_parquet(folder / "index.parquet")


def test_the_one_engine_trains_it_twice_to_the_same_bytes(tmp_path: Path) -> None:
    run = {"method": "infection_ratio", "task": "covid_vs_cap", "recipe": "cube"}
    params = toy_models.params(runs={"ratio": run}, ensembles={})
    threads = torch.get_num_threads()
    weights = []
    for attempt in ("a", "b"):
        out = tmp_path / attempt
        write_outs(out)
        train_run(params, "ratio", 0, out, tmp_path / f".{attempt}")
        weights.append((out / "train/ratio/0/weights.safetensors").read_bytes())
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    assert weights[0] == weights[1]
    out = tmp_path / "a"
    assert not (out / "predictions/ratio/0/attention.npy").exists()
    test = pd.read_parquet(out / "predictions/ratio/0/test.parquet")
    built, description = load_network(out / "train/ratio/0")
    assert json.loads((out / "train/ratio/0/model.json").read_text())["method"] == description["method"]
    unknown = test.loc[test["image_id"] == "ct_volume-0060", "logit_covid19"].item()
    assert unknown == pytest.approx(float(built.prior), abs=1e-6)
    known = test[test["image_id"] != "ct_volume-0060"]
    ill = known["image_id"].str[-4:].astype(int) % 2 == 1
    assert known.loc[ill, "p_covid19"].min() > known.loc[~ill, "p_covid19"].max()  # the toys differ in extent alone
