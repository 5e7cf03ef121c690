"""Links between the pages lead somewhere, and the pages name what there is: commands, stages, profiles, methods."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from chestflow.cli import commands

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md", *DOCS.rglob("*.md")])
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def first_column(page: Path, header: str) -> set[str]:
    """The names in backticks in the first column of the table with this first heading, without what follows an @."""
    table = re.search(rf"^\| {header} \|.*\n\|[-|]+\n((?:\|.*\n)+)", page.read_text(), flags=re.M)
    assert table, f"{page.name} has no table of each {header}"
    return {name for row in table[1].splitlines() for name in re.findall(r"`(\w+)[@`]", row.split("|")[1])}


@every_page
def test_relative_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    missing = []
    for target in (t for t in targets if "://" not in t):
        path, _, anchor = target.partition("#")
        aim = page.parent / path if path else page
        if not aim.exists() or (anchor and anchor not in anchors(aim)):
            missing.append(target)
    assert not missing


def test_the_readme_begins_with_the_two_commands() -> None:
    head = "\n".join((ROOT / "README.md").read_text().splitlines()[:8])
    assert "make repro" in head
    assert "make test" in head


@every_page
def test_commands_exist(page: Path) -> None:
    from typer.main import get_command

    known: dict[str, Any] = get_command(commands).commands  # type: ignore[attr-defined]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    text = page.read_text()
    written = "\n".join([*re.findall(r"^```\n(.*?)^```", text, flags=re.M | re.S), *re.findall(r"`([^`\n]+)`", text)])
    called = re.findall(r"^(?:.*&& )?chestflow ([a-z]+)(?: ([a-z]+)(?![\w/.-]))?", written, flags=re.M)
    wrong = [f"chestflow {first}" for first, _ in called if first not in known]
    groups = {name: command.commands for name, command in known.items() if hasattr(command, "commands")}
    wrong += [f"chestflow {a} {b}" for a, b in called if b and a in groups and b not in groups[a]]
    wrong += [f"make {name}" for name in re.findall(r"^make ([a-z-]+)", written, flags=re.M) if name not in targets]
    assert not wrong


def test_the_pipelines_page_has_every_stage_and_no_other() -> None:
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert first_column(DOCS / "pipeline.md", "stage") == stages


def test_the_pipelines_page_has_every_profile_and_no_other() -> None:
    profiles = {file.stem for file in (ROOT / "profiles").glob("*.yaml")}
    assert first_column(DOCS / "pipeline.md", "profile") == profiles


def test_the_readme_and_a_page_of_its_own_name_every_method() -> None:
    methods = {file.stem for file in (ROOT / "src/chestflow/methods").glob("*.py")} - {"__init__", "registry"}
    pages = "".join(page.read_text() for page in (DOCS / "methods").glob("*.md"))
    for text in ((ROOT / "README.md").read_text(), pages):
        assert not methods - set(re.findall(r"\w+", text))
