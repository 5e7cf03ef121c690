"""The `chestflow` command. Sub-commands import what they need when they are called, so that `--help` is quick."""

from __future__ import annotations

import typer

from chestflow.cli.config import config
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


def app() -> None:
    """Entry point of the console script: errors meant for a user become one line and an exit code."""
    with one_line_errors():
        commands()
