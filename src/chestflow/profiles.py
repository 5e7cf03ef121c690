"""Profiles: what differs from the defaults, and the complete params.yaml made from them.

A file ``profiles/<name>.yaml`` states only what differs; ``extends`` names another profile to start from, and null
removes an entry of it. The complete form holds every default too, so that a default changed in code shows as a changed
param.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from chestflow import dag
from chestflow.config import Params, parse, read_yaml
from chestflow.errors import ConfigError
from chestflow.files import atomic_path
from chestflow.methods import registry
from chestflow.training.uses import planned

HEADER = re.compile(r"^# Written by `chestflow config (?P<profile>[\w-]+)`; body (?P<body>[0-9a-f]{12})\.")


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        if value is None and isinstance(merged.get(key), dict):
            del merged[key]
        elif isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "classes":
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def names(folder: Path = Path("profiles")) -> list[str]:
    """The profiles that exist."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read(name: str, folder: Path = Path("profiles")) -> dict[str, Any]:
    """A profile's values over those of the profile it extends.

    Raises:
        ConfigError: there is no such profile; the message lists those that exist.
    """
    path = folder / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(f"profile {name!r} is unknown; known are {', '.join(names(folder))}")
    values = read_yaml(path)
    base = values.pop("extends", None)
    return _merge(read(base, folder), values) if base else values


def complete(values: dict[str, Any], file: str = "params.yaml") -> dict[str, Any]:
    """Every parameter with its default filled in, the methods' configs included.

    Raises:
        ConfigError: a key is unknown or a value impossible, in the schema, in a method's config, or where a method
            meets its input.
    """
    params = parse(values, file)
    plain = params.model_dump(by_alias=True, mode="json")
    for name, run in params.runs.items():
        method = registry.get(run.method)
        place = f"{file}: runs.{name}.config"
        plain["runs"][name]["config"] = registry.completed(method, run.config, where=place)
        recipe = params.recipes[run.recipe]
        if recipe.modality not in method.modalities:
            reads = ", ".join(method.modalities)
            raise ConfigError(f"{file}: runs.{name}: {run.method} reads {reads}, not {recipe.modality}")
    plain["recipes"] = {n: r for n, r in plain["recipes"].items() if n in params.packed()}
    return plain


def check(params: Params) -> None:
    """Build every run's network on the meta device, so that what cannot fit fails now and not after an epoch."""
    import torch

    from chestflow.training.hardware import mixed

    built: set[str] = set()
    for name, run in params.runs.items():
        method = registry.get(run.method)
        config = registry.configure(method, run.config, where=f"runs.{name}.config")
        recipe = params.recipes[run.recipe]
        classes, taken = tuple(params.tasks[run.task].classes), planned(params, name)
        spec = registry.InputSpec(recipe.modality, tuple(recipe.size), classes, taken)
        if params.engine.device == "cpu":  # the engine asks again for ``auto``, once it knows what that is
            mixed(torch.device("cpu"), params.engine.amp, volumes=recipe.modality == "ct_volume")
        method.phases(config)
        form = repr((run.method, _form(asdict(config)), _form(asdict(spec))))
        if form not in built:
            built.add(form)
            with torch.device("meta"):
                method.build(config, spec)


def _form(value: Any) -> Any:
    """Plain values without the weights that networks begin with, on which nothing depends that is built."""
    return {k: _form(v) for k, v in value.items() if k != "weights"} if isinstance(value, dict) else value


class _Blocks(yaml.SafeDumper):
    """Writes short lists of scalars in one line and the rest as blocks."""


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    flat = all(not isinstance(v, dict | list) for v in value) and sum(len(str(v)) for v in value) < 90
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


_Blocks.add_representer(list, _list)


def text(profile: str, values: dict[str, Any]) -> str:
    """params.yaml as text, with a first line that tells whether it was edited since."""
    body = yaml.dump(values, Dumper=_Blocks, sort_keys=False, width=110)
    digest = hashlib.sha256(body.encode()).hexdigest()[:12]
    advice = "Edit freely, then run `chestflow config --sync`."
    return f"# Written by `chestflow config {profile}`; body {digest}. {advice}\n{body}"


def edited(path: Path) -> bool:
    """Whether params.yaml holds edits that no profile has."""
    if not path.exists():
        return False
    head, _, body = path.read_text().partition("\n")
    match = HEADER.match(head)
    if match is None or match["profile"] == "custom":
        return True
    return hashlib.sha256(body.encode()).hexdigest()[:12] != match["body"]


def write(profile: str, path: Path = Path("params.yaml"), *, force: bool = False) -> bool:
    """Write a profile's complete params.yaml and the tables beside it; True when a file changed.

    Raises:
        ConfigError: params.yaml holds the user's own edits and ``force`` is not set.
    """
    values = complete(read(profile), f"profiles/{profile}.yaml")
    new = text(profile, values)
    changed = not path.exists() or path.read_text() != new
    if changed and edited(path) and not force:
        raise ConfigError(
            f"{path} holds edits of your own: keep them as profiles/<name>.yaml, or replace them with "
            f"`chestflow config {profile} --force`"
        )
    if changed:
        with atomic_path(path) as temporary:
            temporary.write_text(new)
    return dag.write(parse(values, str(path)), path.with_name(dag.FILE.name)) or changed


def sync(path: Path = Path("params.yaml")) -> None:
    """Complete the user's own params.yaml in place, marked custom, and rewrite the tables beside it."""
    values = complete(read_yaml(path), str(path))
    with atomic_path(path) as temporary:
        temporary.write_text(text("custom", values))
    dag.write(parse(values, str(path)), path.with_name(dag.FILE.name))
