"""`chestflow tracking init | ui | compare`: the MLflow store, its pages, and runs side by side."""

from __future__ import annotations

from typing import Annotated

import typer

tracking = typer.Typer(no_args_is_help=True, help="The MLflow store: create it, look at it, compare its runs.")


@tracking.command("init")
def init() -> None:
    """Create the MLflow database, or bring it to the installed MLflow's form after backing it up."""
    from chestflow.tracking import store

    _, backup = store.initialise()
    if backup is not None:
        print(f"upgraded {store.shown()}; the former database is {backup}")
    else:
        print(f"tracking store: {store.shown()}")


@tracking.command("ui")
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="on loopback")] = 5000,
) -> None:
    """Open MLflow on loopback; Ctrl-C ends it. Other machines cannot reach it."""
    from chestflow.tracking.server import serve

    raise typer.Exit(serve(port))


@tracking.command("compare")
def compare(
    metrics: Annotated[
        str, typer.Option(help="comma-separated; each with its interval where there is one")
    ] = "test/auroc,test/sensitivity,test/specificity,test/ece",
) -> None:
    """Print the newest finished run of every name and fold of this profile, with its test figures."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from chestflow.config import load
    from chestflow.tracking.comparison import newest

    wanted = [name.strip() for name in metrics.split(",") if name.strip()]
    rows = newest(load())
    if not rows:
        print("no finished run yet: run `dvc repro`")
        return
    table = Table(box=box.SIMPLE)
    for heading in ("run", "fold", "stage", "commit", *wanted):
        table.add_column(heading)
    for row in rows:
        table.add_row(row.name, row.fold, row.stage, row.commit[:8], *(row.figure(name) for name in wanted))
    Console().print(table)
