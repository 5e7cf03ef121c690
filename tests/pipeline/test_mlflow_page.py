"""MLflow's own pages in a real browser: the experiment's runs side by side, and the registered model.

With CHESTFLOW_SCREENSHOTS=FOLDER the pictures are kept there.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.conftest import Repository
from tests.pipeline.test_report_page import CHROMIUM, QUIET

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def server(tiny: Repository) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ["chestflow", "ui", "--port", str(port)],
        cwd=tiny.root,
        env=tiny.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.5)
        else:
            pytest.fail("the server did not answer within a minute")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def _shot(page: object, name: str) -> None:
    folder = os.environ.get("CHESTFLOW_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_runs_and_model_are_shown(server: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.goto(f"{server}/#/experiments")
        link = page.get_by_role("link", name="chestflow").first
        link.wait_for(timeout=60_000)
        experiment = str(link.get_attribute("href")).split("/experiments/")[1].split("/")[0].split("?")[0]
        page.goto(f"{server}/#/experiments/{experiment}/runs")
        page.get_by_text("ds_uniform").first.wait_for(timeout=60_000)
        page.get_by_text("covidnet_r18_d").first.wait_for(timeout=30_000)
        _shot(page, "mlflow-experiment")
        page.goto(f"{server}/#/models/chestflow-dual_sampling")
        page.get_by_text("candidate").first.wait_for(timeout=60_000)
        _shot(page, "mlflow-model")
        browser.close()


def test_a_taken_port_is_one_clear_line(tiny: Repository, server: str) -> None:
    port = server.rsplit(":", 1)[1]
    done = tiny.run("chestflow", "ui", "--port", port, check=False, timeout=60)
    assert done.returncode == 2
    assert port in done.stderr
    assert "Traceback" not in done.stderr
