"""The `chestflow` command. Sub-commands import what they need when they are called, so that `--help` is quick."""

from __future__ import annotations

import typer

from chestflow.cli.config import config
from chestflow.cli.data import data
from chestflow.cli.predict import predict
from chestflow.cli.promote import promote, promotions, register
from chestflow.cli.track import compare, tracking, ui
from chestflow.errors import one_line_errors

commands = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, compare and promote chest X-ray and CT classifiers.",
)


@commands.callback()
def _root() -> None:
    """Keep sub-commands even where only one is mounted."""


commands.command("config")(config)
commands.add_typer(data, name="data")
commands.add_typer(tracking, name="tracking")
for command in (ui, compare, register, promote, promotions, predict):
    commands.command()(command)


def app() -> None:
    """Entry point of the console script: errors meant for a user become one line and an exit code."""
    with one_line_errors():
        commands()
