"""`chestflow data phantom`: write the embedded cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def phantom(
    out: Annotated[Path, typer.Option(help="folder to write; an older cohort there is replaced")] = Path(
        "data/phantom"
    ),
    patients: Annotated[int, typer.Option(help="number of patients")] = 200,
    seed: Annotated[int, typer.Option(help="seed of the whole cohort")] = 20,
    grid: Annotated[str, typer.Option(help="voxels of the CT volumes, ZxYxX")] = "48x96x96",
    shortcut: Annotated[
        float, typer.Option(help="plant a burnt-in marker that tells COVID-19 rightly this often, 0.5 to 1; 0: none")
    ] = 0.0,
    sheet: Annotated[Path | None, typer.Option(help="also draw a contact sheet (PNG) of the cohort")] = None,
) -> None:
    """Write the synthetic cohort: CT volumes, slices and X-rays with true masks, the same bytes every time."""
    from chestflow.data.phantom.generate import write_cohort
    from chestflow.errors import ConfigError

    parts = grid.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ConfigError(f"--grid is {grid!r}; write three numbers as in 48x96x96")
    z, y, x = (int(part) for part in parts)
    table = write_cohort(out, patients, seed, (z, y, x), shortcut)
    counts = table.groupby("modality").size()
    print(
        f"{out}: {table['patient'].nunique()} synthetic patients, " + ", ".join(f"{n} {m}" for m, n in counts.items())
    )
    if sheet is not None:
        from chestflow.data.phantom.contact_sheet import draw_sheet

        draw_sheet(out, sheet)
        print(f"{sheet}: contact sheet")
