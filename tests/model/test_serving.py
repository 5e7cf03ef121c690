"""The registered model answers alike through Predictor, pyfunc and HTTP, without pickle, and carries its own code."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestflow.serving import inputs
from chestflow.serving.infection import UNKNOWN, Marked
from chestflow.tracking import lookup, registry, store
from tests import stores
from tests.model import toy_models


@dataclass
class Served:
    """A store with both kinds of model, and files to ask about."""

    root: Path
    xray: Path
    volume: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        root = stores.give(tmp_path_factory.mktemp("served"), patch)
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        shutil.copytree(toy_models.trained() / "out", root / "out")
        for name in ("plain", "pair"):
            registry.register(toy_models.params(), name)
        xray = toy_models.write_xray(root / "x.png", toy_models.xray(1, True))
        yield Served(root, xray, toy_models.write_ct(root / "v.nii.gz", toy_models.ct(1, True)[0]))


def _in_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _direct(name: str, path: Path) -> dict:
    from chestflow.serving.answer import Predictor

    version = lookup.resolve(store.connect(), name)
    with lookup.files(version) as folder:
        return Predictor(folder, version.label).answer(path).plain()


def test_pyfunc_answers_as_the_predictor_does(served: Served) -> None:
    import mlflow

    for name, path in (("plain", served.xray), ("pair", served.volume)):
        model = mlflow.pyfunc.load_model(f"models:/chestflow-{name}@candidate")
        table = model.predict(pd.DataFrame({"image": [_in_base64(path)], "filename": ["one"]}))
        direct = _direct(name, path)
        assert direct["status"] == "answered"
        row = table.iloc[0]
        assert row["filename"] == "one"
        assert row["probability"] == pytest.approx(direct["probability"], abs=1e-6)
        assert row["label"] == direct["label"]
        assert row["notice"] == "PHANTOM MODEL, not for patients"
        assert row["model"] == f"chestflow-{name} v1"


def test_one_broken_file_among_many_is_said_and_the_rest_answered(served: Served) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model("models:/chestflow-plain@candidate")
    images = [
        "not base64!",
        base64.b64encode(b"not an image").decode(),
        _in_base64(served.volume),
        _in_base64(served.xray),
    ]
    table = model.predict(pd.DataFrame({"image": images}))
    assert list(table["status"]) == ["unreadable", "unreadable", "abstained", "answered"]
    assert list(table["reason"][:3]) == ["not_an_image", "not_an_image", "wrong_modality"]


def test_a_zipped_series_is_read_and_its_names_are_dropped(served: Served) -> None:
    from chestflow.serving.pyfunc_model import _unpack

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("../../escaped.dcm", b"x")
    folder = _unpack(content.getvalue(), served.root)
    assert [path.name for path in folder.iterdir()] == ["00000.dcm"]
    assert not (served.root.parent.parent / "escaped.dcm").exists()


def test_the_folder_holds_no_pickle_and_states_its_requirements(served: Served) -> None:
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts("models:/chestflow-pair/1"))
    endings = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert not endings & {".pkl", ".pickle", ".pt", ".pth", ".pyc"}
    needed = (folder / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in needed)
    assert {"mlflow", "torch", "safetensors", "pydicom"} <= {line.split("==")[0] for line in needed}
    described = mlflow.models.get_model_info("models:/chestflow-pair/1")
    assert [column.name for column in described.signature.inputs.inputs] == ["image", "filename"]
    assert described.saved_input_example_info is not None


def test_a_model_loads_where_chestflow_is_not_installed(served: Served) -> None:
    code = (
        "import sys, base64, pandas as pd, mlflow\n"
        "sys.path = [p for p in sys.path if not p.endswith('/src')]\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "import chestflow; print(chestflow.__file__)\n"
        "image = base64.b64encode(open(sys.argv[2], 'rb').read()).decode()\n"
        "print(model.predict(pd.DataFrame({'image': [image]}))['status'][0])\n"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store.uri()}
    command = [sys.executable, "-c", code, "models:/chestflow-plain/1", str(served.xray)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    place, status = done.stdout.split()
    assert "mlruns" in place
    assert status == "answered"


def test_the_model_answers_over_http(served: Served) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/chestflow-plain@candidate"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": store.uri(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait(f"http://127.0.0.1:{port}/ping", process)
        body = {"dataframe_split": {"columns": ["image", "filename"], "data": [[_in_base64(served.xray), "x.png"]]}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            (answer,) = json.load(response)["predictions"]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
    direct = _direct("plain", served.xray)
    assert answer["label"] == direct["label"]
    assert answer["probability"] == pytest.approx(direct["probability"], abs=1e-6)
    assert answer["notice"] == "PHANTOM MODEL, not for patients"


def _wait(address: str, process: subprocess.Popen) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            assert process.poll() is None, "the server ended"
            time.sleep(0.5)
    pytest.fail("the server did not answer within two minutes")


def test_the_members_of_all_folds_answer_together_and_give_a_range(tmp_path: Path) -> None:
    from chestflow.serving.answer import Predictor
    from tests.model import bundles

    described = bundles.write(tmp_path, "plain", folds=2)
    assert [member.fold for member in described.members] == [0, 1]
    assert described.temperature == 1.5  # the median of 1 and 2
    predictor = Predictor(tmp_path, "m")
    answer = predictor.answer(toy_models.write_xray(tmp_path / "x.png", toy_models.xray(1, True)))
    assert answer.status == "answered"
    assert answer.low is not None
    assert answer.low <= answer.probability <= answer.high
    alone, bare = Predictor(tmp_path, "m"), Marked(None, None, UNKNOWN)
    opinions = [o.logits for o in alone.networks.ask(inputs.load(tmp_path / "x.png", "cxr"), bare, {"single"})]
    scores = np.mean(opinions, axis=0)
    expected = np.exp(scores / 1.5)[1] / np.exp(scores / 1.5).sum()
    assert answer.probability == pytest.approx(expected, abs=1e-9)


def test_the_best_fold_alone_where_asked(tmp_path: Path) -> None:
    from chestflow.tracking.packing import describe

    out = toy_models.trained(2) / "out"
    best = describe(toy_models.params(folds=[0, 1], register={"members": "best"}), "plain", out)
    values = [json.loads((out / f"train/plain/{fold}/model.json").read_text())["best"][-1]["auroc"] for fold in (0, 1)]
    assert [member.fold for member in best.members] == [int(np.argmax(values))]
