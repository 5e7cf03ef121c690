"""Each X-ray method goes the whole way on a few drawn chests: trained, saved, bundled, and asked about a file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from chestflow.config import Params
from chestflow.methods import registry
from chestflow.serving import bundle
from chestflow.serving.answer import Predictor
from chestflow.tracking.packing import describe, studies
from chestflow.training.run import train_run
from tests.model import toy_models

#: The smallest form of each method that is still itself; 64 pixels.
SMALL: dict[str, dict[str, Any]] = {
    "ac_covidnet": {"widths": [4, 6, 8, 10], "encoded": 32, "norm": "batch", "epochs": 1, "classifier_epochs": 1},
    "baselines": {"network": "squeezenet1_1", "epochs": 1},
    "bcnn": {"backbone": "resnet18", "second": "attention", "scales": [7], "epochs": 1},
    "covid_caps": {"epochs": 1, "channels": 1},
    "covid_net": {"epochs": 1},
    "covidnet": {"setting": "D", "backbone": "squeezenet1_1", "hidden": 8, "clusters": 4, "epochs": 1},
    "covxnet": {"scales": [64, 32], "epochs": 1},
    "darkcovidnet": {"epochs": 1},
    "fpn": {"backbone": "resnet18", "epochs": 1},
    "mag_sd": {"backbone": "resnet18", "scales": [7], "epochs": 1},
    "unet_classifier": {"backbone": "resnet18", "epochs": 1},
}
#: 184 million parameters, whatever the image's size
HEAVY = {"covid_net"}


def test_no_x_ray_method_is_left_out() -> None:
    assert set(SMALL) == {name for name in registry.names() if "cxr" in registry.get(name).modalities}


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] if m in HEAVY else []) for m in sorted(SMALL)]
)
def test_it_trains_registers_and_answers(method: str, tmp_path: Path) -> None:
    params = _params(method)
    toy_models.write_outs(tmp_path / "out")
    threads = torch.get_num_threads()
    description = train_run(params, "plain", 0, tmp_path / "out", tmp_path / ".checkpoints")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    assert description["method"] == method
    test = pd.read_parquet(tmp_path / "out/predictions/plain/0/test.parquet")
    assert len(test) == 12
    assert np.isfinite(test[["p_rest", "p_covid19"]]).all(axis=None)
    assert "target" not in test
    toy_models.write_evidence(tmp_path / "out", params, "plain")
    described = describe(params, "plain", tmp_path / "out")
    bundle.write(
        described,
        tmp_path / "model",
        tmp_path / "out",
        calibration=tuple(studies(params, "plain", tmp_path / "out").values()),
    )
    shutil.rmtree(tmp_path / "out")
    picture = toy_models.write_xray(tmp_path / "x.png", toy_models.xray(1, True))
    answer = Predictor(tmp_path / "model", f"chestflow-{method} v1").answer(picture)
    if answer.status == "answered":
        assert answer.probability is not None
        assert 0 <= answer.probability <= 1
    else:  # a network of one epoch may find a drawn chest unusual; it may not fail
        assert answer.reason == "unlike_training"


def _params(method: str) -> Params:
    run = {"method": method, "task": "covid_vs_rest", "recipe": "small", "config": {**SMALL[method], "batch_size": 8}}
    return toy_models.params(runs={"plain": run}, ensembles={})
