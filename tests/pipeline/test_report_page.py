"""The report in a real browser, at desktop and phone width: no picture missing, no script or request failing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.pipeline.conftest import Repository
from tests.pipeline.test_tiny import NAMES, VOLUMES, XRAYS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


#: Of each grid of heat maps: its task, its columns, and how many rows of pictures it has.
GRIDS = """[...document.querySelectorAll('#maps ~ h3')].filter(h => h.textContent.startsWith('Task ')).map(h => {
    const table = h.nextElementSibling.querySelector('table');
    return table && {task: h.textContent.slice(5), columns: [...table.tHead.rows[0].cells].map(c => c.textContent),
                     rows: [...table.tBodies[0].rows].map(r => r.querySelectorAll('img').length)};
}).filter(g => g)"""
#: The papers' significance tests: the printed rows and ours in their place.
SIGNIFICANCE = """[...document.querySelectorAll('h3, h4')].filter(h => h.textContent.includes('significance tests'))
    .flatMap(h => [...h.nextElementSibling.querySelectorAll('tbody tr')])
    .map(r => [...r.cells].map(c => c.textContent))"""

#: The first cells of the table of tuned thresholds.
TAUS = """[...document.querySelector('#tau ~ .scroll').querySelectorAll('tbody tr')].map(r => r.cells[0].textContent)"""


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
        grids = page.evaluate(GRIDS)
        tests = page.evaluate(SIGNIFICANCE)
        taus = page.evaluate(TAUS)
        text = page.inner_text("body")
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()
    assert not problems
    assert not broken
    assert pictures >= 12
    assert overflow <= 0, "the page scrolls sideways"
    for name in ("Summary", "Data", "Warnings", "Shortcuts", "Infection masks", "Pretraining without labels", *NAMES):
        assert name in headings
    for name in ("Tuned thresholds of the heat map (tau)", "Heat maps side by side", "Comparison between methods"):
        assert name in headings
    maps = {grid["task"]: grid for grid in grids}
    assert maps["covid_vs_rest"]["columns"][2:] == list(XRAYS)
    # the baseline has no map; the run without attention shows Grad-CAM beside the trained maps, as in Figure 5
    looking = [run for run in VOLUMES if run != "infection_ratio"]
    assert maps["covid_vs_cap"]["columns"][2:] == looking
    for grid in grids:
        assert grid["rows"]
        assert set(grid["rows"]) == {len(grid["columns"]) - 1}
    assert "Grad-CAM: ds_plain; the others show their trained attention" in text
    ours = {row[4] for row in tests}
    assert ours >= {f"{name} – ds_plain" for name in ("ds_uniform", "ds_balanced", "dual_sampling")}
    assert taus == ["multi_knowledge"]
    assert "SYNTHETIC DATA" in text
    assert "undefined" not in text.lower()
    assert "nan" not in text.lower().split()
