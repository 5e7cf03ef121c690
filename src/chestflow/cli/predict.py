"""`chestflow predict`: answers for files from a registered model.

Exit codes: 0 every file was answered or abstained on; 1 some files could not be read, the rest was answered; 2 nothing
could be done (unknown model or alias, damaged model, no readable file at all).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from chestflow.serving.answer import Answer, Predictor


def predict(
    model: Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="or NAME/3, or NAME for its candidate")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="DICOM, PNG, JPEG, NIfTI, or a DICOM folder")],
    json_to: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="write answers as JSON; - prints them")
    ] = None,
    overlays: Annotated[Path | None, typer.Option(metavar="DIR", help="write heat maps as PNG here")] = None,
    infection_mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the infection of the one FILE: gives an ensemble its ratio")
    ] = None,
) -> None:
    """Answer for images with a probability and a class, or abstain and say why."""
    from chestflow.errors import ConfigError
    from chestflow.serving.answer import UNREADABLE, Predictor
    from chestflow.tracking import lookup, store

    if infection_mask is not None and len(files) != 1:
        raise ConfigError(f"--infection-mask belongs to one file, {len(files)} were given: call once a file")
    version = lookup.resolve(store.connect(), model)
    with lookup.files(version) as folder:
        answers = _answers(Predictor(folder, version.label), files, overlays, infection_mask)
    if json_to != "-":
        _table(answers)
    if json_to is not None:
        _json(answers, json_to)
    unreadable = sum(answer.status == UNREADABLE for answer in answers)
    if unreadable:
        raise typer.Exit(2 if unreadable == len(answers) else 1)


def _answers(predictor: Predictor, files: list[Path], overlays: Path | None, mask: Path | None) -> list[Answer]:
    """Every file's answer; a broken one does not keep the rest from theirs."""
    names = overlay_names(files)
    return [
        predictor.answer(
            file, infection_mask=mask, overlay=None if overlays is None else overlays / f"{names[index]}.png"
        )
        for index, file in enumerate(files)
    ]


def overlay_names(files: list[Path]) -> list[str]:
    """Names of the overlays: the files' own without endings, numbered where two would be one."""
    names: list[str] = []
    for file in files:
        base = file.resolve().name.split(".")[0] or "image"
        name, count = base, 1
        while name in names:
            count += 1
            name = f"{base}-{count}"
        names.append(name)
    return names


def _json(answers: list[Answer], to: str) -> None:
    values = [answer.plain() for answer in answers]
    if to == "-":
        print(json.dumps(values, indent=1, allow_nan=False))
        return
    from chestflow.files import write_json

    write_json(Path(to), values)


def _table(answers: list[Answer]) -> None:
    """Print answers; the notice of a phantom-trained model stands above and in each row."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)  # file names may hold brackets
    notice = answers[0].notice
    if notice:
        console.print(notice, style="bold red")
    table = Table(box=box.SIMPLE, title=f"{answers[0].model}; not a medical device", title_justify="left")
    weighted = any(answer.network in ("ensemble", "uniform") for answer in answers)
    table.add_column("file", overflow="fold")
    table.add_column("answer", min_width=18)
    for heading in ("p(covid19)", "threshold", *(("ratio", "ratio from", "network") if weighted else ())):
        table.add_column(heading, no_wrap=True)
    table.add_column("why", min_width=20)
    for answer in answers:
        spread = "" if answer.low is None else f" ({answer.low:.3f} to {answer.high:.3f})"
        shown = answer.label or answer.status
        ratio = answer.ratio if isinstance(answer.ratio, str) else f"{answer.ratio:.4f}"
        table.add_row(
            answer.file,
            f"{notice}: {shown}" if notice else shown,
            "" if answer.probability is None else f"{answer.probability:.3f}{spread}",
            "" if answer.threshold is None else f"{answer.threshold:.3f}",
            *((ratio, answer.ratio_from, answer.network or "") if weighted else ()),
            f"{answer.reason}: {answer.detail}" if answer.reason else "",
        )
    console.print(table)
