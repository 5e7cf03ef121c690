"""`chestflow config`: write, complete and check params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PARAMS = Path("params.yaml")


def config(
    profile: Annotated[str | None, typer.Argument(help="profile to write; none checks params.yaml")] = None,
    force: Annotated[bool, typer.Option(help="replace params.yaml even when it holds edits of your own")] = False,
    sync: Annotated[bool, typer.Option(help="complete your own params.yaml in place")] = False,
) -> None:
    """Write the complete params.yaml of a profile, or check the one that is there."""
    from chestflow import dag, profiles
    from chestflow.config import load

    if profile is not None:
        changed = profiles.write(profile, PARAMS, force=force)
        print(f"params.yaml {'now holds' if changed else 'already holds'} profile {profile}")
    elif sync:
        profiles.sync(PARAMS)
        print("params.yaml is complete; it is marked as custom")
    params = load(PARAMS)
    dag.require_current(params)
    profiles.check(params)
    print(f"params.yaml is valid: {len(params.runs)} runs, {len(params.ensembles)} ensembles, folds {params.folds}")
