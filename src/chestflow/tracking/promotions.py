"""Moving an alias after the gates, and the journal of every attempt.

``promotions.jsonl`` beside the database is only ever appended to: a line for each promotion, roll-back and refusal. The
line is written before the alias moves, so that no move goes unrecorded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestflow.errors import ConfigError, GateRefused, TrackingError
from chestflow.files import plain
from chestflow.tracking import gates, lookup, provenance, store

if TYPE_CHECKING:
    from chestflow.config import Promote
    from chestflow.tracking.gates import Verdict
    from chestflow.tracking.lookup import Version

JOURNAL = "promotions.jsonl"


@dataclass(frozen=True)
class Promotion:
    """An attempt and its outcome: ``promoted``, ``rolled back``, ``unchanged`` or ``refused``."""

    version: Version
    target: str
    outcome: str
    before: int | None
    verdicts: list[Verdict]
    override: str | None


def journal() -> Path:
    """The journal's file."""
    return store.root() / JOURNAL


def promote(
    name: str,
    target: str,
    settings: Promote,
    *,
    number: int | None = None,
    override: str | None = None,
    smallest_subgroup: int = 20,
    show: Callable[[Version, list[Verdict]], None] | None = None,
) -> Promotion:
    """Judge a version and, if every gate passes or may be overridden and is, point the alias at it.

    Args:
        name: the model, with or without ``chestflow-``.
        target: ``staging`` or ``production``.
        settings: section ``promote`` of params.yaml.
        number: the version; the candidate by default. An earlier one than the alias's is a roll-back.
        override: why failing gates shall not count; recorded with who said so. Absolute gates hold all the same.
        smallest_subgroup: ``evaluate.min_group``.
        show: is given the verdicts before anything moves.

    Raises:
        ConfigError: an unknown target, or an empty reason.
        TrackingError: the model or version is unknown, or its evidence cannot be read.
        GateRefused: a gate failed; the alias stays where it is and the refusal is recorded.
    """
    if target not in gates.TARGETS:
        raise ConfigError(f"{target!r} is no target: promote to {' or '.join(gates.TARGETS)}")
    if override is not None and not override.strip():
        raise ConfigError("--override needs a reason in words: it is kept for good")
    client = store.connect()
    full = lookup.model_name(name)
    aliases = lookup.aliases_of(client, full)
    version = lookup.by_number(client, full, number) if number is not None else lookup.resolve(client, full)
    found, bundle, digest = lookup.evidence(version)
    verdicts = gates.judge(
        found,
        bundle,
        getattr(settings, target),
        target,
        smallest_subgroup=smallest_subgroup,
        research_use=settings.research_use,
    )
    if show is not None:
        show(version, verdicts)
    before = int(aliases[target]) if target in aliases else None
    failed = [verdict for verdict in verdicts if not verdict.passed]
    blocked = [verdict for verdict in failed if verdict.absolute] or (failed if override is None else [])
    used = override.strip() if override is not None and failed else None
    outcome = "refused" if blocked else _outcome(before, version.number)
    entry = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": provenance.person(),
        "model": version.name,
        "version": version.number,
        "target": target,
        "from_version": before,
        "outcome": outcome,
        "override": override.strip() if override is not None else None,
        "gates": [verdict.plain() for verdict in verdicts],
        "evidence_sha256": digest,
        "run_ids": version.tags.get("run_ids"),
        "profile": bundle.profile,
        "research_use": settings.research_use,
        "code": provenance.code_version(),
    }
    _append(entry)
    if blocked:
        raise GateRefused(_refusal(version, target, blocked, override))
    with store.clear_errors("moving the alias"):
        client.set_registered_model_alias(version.name, target, str(version.number))
        for key in ("when", "who", "from_version", "override", "evidence_sha256"):
            value = used if key == "override" else entry[key]
            client.set_model_version_tag(version.name, str(version.number), f"{target}.{key}", str(value or "none"))
    return Promotion(version, target, outcome, before, verdicts, used)


def _outcome(before: int | None, number: int) -> str:
    if before is None or before < number:
        return "promoted"
    return "unchanged" if before == number else "rolled back"


def _refusal(version: Version, target: str, blocked: list[Verdict], override: str | None) -> str:
    names = ", ".join(verdict.gate for verdict in blocked)
    if any(verdict.absolute for verdict in blocked):
        why = "no override passes this" if override is not None else "and no override would pass it"
        return f"{version.label} is not promoted to {target}: {names}; {why}"
    return f'{version.label} is not promoted to {target}: {names}; `--override "reason"` records who and why'


def _append(entry: dict[str, Any]) -> None:
    """Add one line in one write, so that two writers do not mix theirs."""
    line = json.dumps(plain(entry), sort_keys=True, allow_nan=False) + "\n"
    handle = os.open(journal(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def history(name: str | None = None) -> list[dict[str, Any]]:
    """The journal's entries, oldest first, of one model or all.

    Raises:
        TrackingError: a line is damaged.
    """
    if not journal().exists():
        return []
    entries = []
    for row, line in enumerate(journal().read_text().splitlines(), start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            raise TrackingError(f"{journal()}: line {row} is damaged: restore the file from git or a backup") from None
    full = None if name is None else lookup.model_name(name)
    return [entry for entry in entries if full in (None, entry["model"])]
