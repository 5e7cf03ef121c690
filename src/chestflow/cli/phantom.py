"""`chestflow data phantom`: write the embedded cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chestflow.data.phantom.layout import LARGE


def phantom(
    out: Annotated[
        Path | None, typer.Option(help="folder to write; an older cohort there is replaced [default: data/phantom]")
    ] = None,
    patients: Annotated[int | None, typer.Option(help="number of patients [default: 200]")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the whole cohort [default: 20]")] = None,
    grid: Annotated[str, typer.Option(help="voxels of the CT volumes, ZxYxX")] = "48x96x96",
    shortcut: Annotated[
        float, typer.Option(help="plant a burnt-in marker that tells COVID-19 rightly this often, 0.5 to 1; 0: none")
    ] = 0.0,
    large: Annotated[
        bool,
        typer.Option("--large", help="the cohort of profile phantom_large: data/phantom_large, 320 patients, seed 21"),
    ] = False,
    sheet: Annotated[Path | None, typer.Option(help="also draw a contact sheet (PNG) of the cohort")] = None,
) -> None:
    """Write the synthetic cohort: CT volumes, slices and X-rays with true masks, the same bytes every time."""
    from chestflow.data.phantom import generate
    from chestflow.errors import ConfigError

    if large:
        usual, count, first = LARGE, generate.LARGE_PATIENTS, generate.LARGE_SEED
    else:
        usual, count, first = "phantom", generate.PATIENTS, generate.SEED
    out = Path("data") / usual if out is None else out
    patients = count if patients is None else patients
    seed = first if seed is None else seed
    parts = grid.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ConfigError(f"--grid is {grid!r}; write three numbers as in 48x96x96")
    z, y, x = (int(part) for part in parts)
    table = generate.write_cohort(out, patients, seed, (z, y, x), shortcut)
    counts = table.groupby("modality").size()
    print(
        f"{out}: {table['patient'].nunique()} synthetic patients, " + ", ".join(f"{n} {m}" for m, n in counts.items())
    )
    if sheet is not None:
        from chestflow.data.phantom.contact_sheet import draw_sheet

        draw_sheet(out, sheet)
        print(f"{sheet}: contact sheet")
