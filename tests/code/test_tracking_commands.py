"""`chestflow register`, `promote`, `promotions`, `compare` as a person sees them: tables, errors of one line, codes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from chestflow.cli import app
from tests import stores
from tests.model import toy_models


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = stores.give(tmp_path_factory.mktemp("commands"), patch)
        patch.setenv("COLUMNS", "200")
        shutil.copytree(toy_models.trained() / "out", folder / "out")
        values = toy_models.params().model_dump(mode="json", by_alias=True)
        (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        yield folder


@pytest.fixture
def call(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["chestflow", *arguments])
        with pytest.raises(SystemExit) as ended:
            app()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


def test_from_registration_to_production(call: object) -> None:
    code, text, _ = call("register", "plain", "pair")
    assert code == 0
    assert "registered chestflow-plain v1, alias candidate" in text
    code, text, _ = call("register", "plain")
    assert "chestflow-plain v1 already holds plain" in text
    code, text, _ = call("promotions")
    assert (code, text) == (0, "nothing has been promoted yet\n")
    code, text, _ = call("promote", "plain", "--to", "staging")
    assert code == 0
    assert "AUROC, lower bound" in text
    assert "0.850" in text
    assert "chestflow-plain v1 is now staging (promoted)" in text
    code, text, error = call("promote", "plain", "--to", "production", "--override", "we must")
    assert code == 4
    assert "FAILS, for good" in text
    assert error.startswith("error: chestflow-plain v1 is not promoted to production: ")
    assert error.count("\n") == 1
    code, text, _ = call("promotions", "plain")
    assert [word in text for word in ("promoted", "refused", "we must", "trained on")] == [True] * 4
    code, text, _ = call("compare", "--metrics", "test/auroc")
    assert code == 0
    assert "0.950 (0.850 to 0.990)" in text
    assert "even" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("promote", "nobody", "--to", "staging"), "model chestflow-nobody is unknown"),
        (("promote", "plain", "--to", "latest"), "promote to staging or production"),
        (("register", "nobody"), "nobody is neither a run nor an ensemble"),
        (("predict", "plain@best", "x.png"), "no alias best; it has candidate"),
    ],
)
def test_mistakes_are_one_line(call: object, arguments: tuple[str, ...], message: str) -> None:
    call("register", "plain")
    code, _, error = call(*arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
