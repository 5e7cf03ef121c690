"""`chestflow register`, `chestflow promote` and `chestflow promotions`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from chestflow.tracking.gates import Verdict
    from chestflow.tracking.lookup import Version

OUT = Path("out")


def register(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="runs or ensembles; none takes all")
    ] = None,
) -> None:
    """Make model versions from the stages' outs; in a fresh clone, after `dvc pull`, this fills the registry again."""
    from chestflow.config import load
    from chestflow.tracking.registry import register as make

    params = load()
    for name in names or [*params.runs, *params.ensembles]:
        make(params, name.removeprefix("chestflow-"), OUT)


def show_verdicts(version: Version, target: str, verdicts: list[Verdict]) -> None:
    """Print gate, value, bound and verdict."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{version.label} to {target}", box=box.SIMPLE, title_justify="left")
    for heading in ("gate", "value", "bound", "verdict", "note"):
        table.add_column(heading)
    for one in verdicts:
        refused = "FAILS, for good" if one.absolute else "FAILS"
        passes = "not judged" if one.value == "not measured" else "passes"
        table.add_row(one.gate, one.value, one.bound, passes if one.passed else refused, one.note)
    Console(markup=False, highlight=False).print(table)


def promote(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="a registered model; the prefix chestflow- may be left out")
    ],
    to: Annotated[str, typer.Option("--to", metavar="staging|production", help="the alias to move")],
    version: Annotated[
        int | None, typer.Option(help="the version; the candidate by default, an earlier one rolls back")
    ] = None,
    override: Annotated[
        str | None, typer.Option(help="a reason why failing gates shall not count; kept for good")
    ] = None,
) -> None:
    """Check a model version's evidence against the gates of params.yaml and, if they pass, move the alias."""
    from chestflow.config import load
    from chestflow.tracking.promotions import promote as move

    params = load()
    done = move(
        name,
        to,
        params.promote,
        number=version,
        override=override,
        smallest_subgroup=params.evaluate.min_group,
        show=lambda found, verdicts: show_verdicts(found, to, verdicts),
    )
    before = f"; before it was v{done.before}" if done.before not in (None, done.version.number) else ""
    reason = f"; gates overridden: {done.override}" if done.override else ""
    print(f"{done.version.label} is now {to} ({done.outcome}{before}{reason})")


def promotions(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="one model; none shows all")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="print the journal's lines")] = False,
) -> None:
    """Show who promoted which version when, what was refused, and on which evidence."""
    import json

    from chestflow.tracking.promotions import history

    entries = history(name)
    if json_lines:
        for entry in entries:
            print(json.dumps(entry, sort_keys=True))
        return
    if not entries:
        print("nothing has been promoted yet")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for heading in ("when", "who", "model", "version", "to", "outcome", "failed gates", "override"):
        table.add_column(heading)
    for entry in entries:
        failed = ", ".join(gate["gate"] for gate in entry["gates"] if not gate["passed"])
        came = f" (from v{entry['from_version']})" if entry["from_version"] else ""
        table.add_row(
            entry["when"],
            entry["who"],
            entry["model"],
            f"v{entry['version']}{came}",
            entry["target"],
            entry["outcome"],
            failed or "none",
            entry["override"] or "",
        )
    Console(markup=False, highlight=False).print(table)
