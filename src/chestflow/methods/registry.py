"""Finding a method by name, and the config fields that say where each default comes from.

A method ``x`` is the module ``chestflow.methods.x`` with one ``METHOD``; nothing lists the methods, so adding one
touches no other file. Its config is a frozen dataclass whose fields are made with :func:`paper`, :func:`code` or
:func:`ours`, so that the report can list each value that deviates from the paper by comparison.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chestflow.errors import ConfigError

if typing.TYPE_CHECKING:
    from torch import nn

    from chestflow.training.phases import Phase


@dataclass(frozen=True)
class InputSpec:
    """What the network will be fed: ``shape`` is (H, W) or (D, H, W), ``classes`` in index order with covid19 last.

    ``uses`` is what it takes over from other stages (:mod:`chestflow.training.uses`): ``global``, a dict of method,
    config, input and dropped modules of another run's network, and ``tau``, a number.
    """

    modality: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    uses: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, values: dict[str, Any]) -> InputSpec:
        """From plain values, as model.json holds them."""
        shape, classes = tuple(values["shape"]), tuple(values["classes"])
        return cls(values["modality"], shape, classes, values.get("uses", {}))


@dataclass(frozen=True)
class Method:
    """A paper's method.

    Attributes:
        name: the module's name.
        citation: one line, with the equations' source.
        modalities: what it can read: cxr, ct_slice, ct_volume.
        config: frozen dataclass with defaults.
        build: (config, input) -> network whose ``forward(image, lung=None)`` returns an
            :class:`~chestflow.nn.output.Output`; one whose ``reads_infection`` is true takes the
            infection mask third. Raises ConfigError where they do not fit.
        phases: config -> the phases to run in order.
        provenance: of a comparator, one line: what its network was read from, or how it was approximated.
    """

    name: str
    citation: str
    modalities: tuple[str, ...]
    config: type
    build: Callable[[Any, InputSpec], nn.Module]
    phases: Callable[[Any], list[Phase]]
    provenance: str = ""


def _sourced(default: Any, source: str, where: str, paper_value: Any, choices: tuple[Any, ...] | None) -> Any:
    metadata = {"source": source, "where": where, "paper": paper_value, "choices": choices}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def paper(default: Any, where: str = "", *, choices: tuple[Any, ...] | None = None) -> Any:
    """A field whose default is the paper's value; ``where`` names the section or equation."""
    return _sourced(default, "paper", where, default, choices)


def code(default: Any, where: str = "", *, paper: Any = None, choices: tuple[Any, ...] | None = None) -> Any:
    """A field whose default only the paper's published code states; ``paper`` is the paper's value where it differs."""
    return _sourced(default, "code", where, paper, choices)


def ours(default: Any, where: str = "", *, paper: Any = None, choices: tuple[Any, ...] | None = None) -> Any:
    """A field whose default we chose; ``paper`` is the paper's value where it gives one; ``where`` says why."""
    return _sourced(default, "ours", where, paper, choices)


def at_least_one(config: Any, *fields: str) -> None:
    """Refuse counts and sizes below 1; for a config's ``__post_init__``.

    Raises:
        ValueError: the first field below 1, with its value.
    """
    for name in fields:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")


def names() -> list[str]:
    """Every method that can be imported, sorted."""
    import chestflow.methods

    return sorted(m.name for m in pkgutil.iter_modules(chestflow.methods.__path__) if m.name != "registry")


def get(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: there is none; the message lists those that exist.
    """
    if name not in names():
        raise ConfigError(f"method {name!r} is unknown; known are {', '.join(names())}")
    method: Method = importlib.import_module(f"chestflow.methods.{name}").METHOD
    return method


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, h) for h in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            return False
        arguments = typing.get_args(hint)
        inner = arguments[0] if arguments else Any
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            return len(value) == len(arguments) and all(map(_fits, value, arguments))
        return all(_fits(v, inner) for v in value)
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def configure(method: Method, values: dict[str, Any], *, where: str = "config") -> Any:
    """Make a method's config from plain values, checking names, types and choices.

    Raises:
        ConfigError: an unknown key (with the known ones), a wrong type, or a value outside the field's choices.
    """
    fields = {f.name: f for f in dataclasses.fields(method.config)}
    hints = typing.get_type_hints(method.config)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}.{key} is unknown to method {method.name}; known are {', '.join(fields)}")
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise ConfigError(f"{where}.{key} is {value!r}; expected {hints[key]}")
        choices = fields[key].metadata.get("choices")
        if choices is not None and value not in choices:
            raise ConfigError(f"{where}.{key} is {value!r}; choose one of {', '.join(map(repr, choices))}")
        checked[key] = tuple(value) if isinstance(value, list) else value
    try:
        return method.config(**checked)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None


def completed(method: Method, values: dict[str, Any], *, where: str = "config") -> dict[str, Any]:
    """All of a method's values, defaults filled in, as plain YAML values."""
    config = configure(method, values, where=where)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def deviations(method: Method, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Each value that differs from the paper's: name, value, the paper's value, and why, found by comparison."""
    rows = []
    for f in dataclasses.fields(method.config):
        stated = f.metadata.get("paper")
        value = values.get(f.name, f.default)
        value = list(value) if isinstance(value, tuple) else value
        stated_plain = list(stated) if isinstance(stated, tuple) else stated
        if stated is not None and value != stated_plain:
            rows.append({"name": f.name, "value": value, "paper": stated_plain, "where": f.metadata.get("where", "")})
    return rows
