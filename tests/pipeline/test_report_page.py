"""The report in a real browser, at desktop and phone width: no picture missing, no script or request failing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.pipeline.conftest import Repository

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_page_shows_everything(tiny: Repository, tmp_path: Path, width: int, height: int) -> None:
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("pageerror", lambda error: problems.append(f"script: {error}"))
        page.on("console", lambda m: problems.append(f"console: {m.text}") if m.type == "error" else None)
        page.on("request", lambda r: problems.append(f"request: {r.url}") if r.url.startswith("http") else None)
        page.goto((tiny.root / "out/report/index.html").as_uri())
        broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)")
        pictures = page.evaluate("document.images.length")
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        headings = page.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)")
        text = page.inner_text("body")
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()
    assert not problems
    assert not broken
    assert pictures >= 12
    assert overflow <= 0, "the page scrolls sideways"
    for name in ("Summary", "Data", "Warnings", "dual_sampling", "covidnet_r18_d", "Comparison between methods"):
        assert name in headings
    assert "SYNTHETIC DATA" in text
    assert "undefined" not in text.lower()
    assert "nan" not in text.lower().split()
