"""Stage validate: expectations of every row, and rules about sets, cohorts and tasks.

A critical finding stops the pipeline, with a table on the screen and every finding in ``validation.json``; a warning is
carried to the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestflow.config import Params
from chestflow.data import confounding_rules, dataset_rules
from chestflow.data.dataset_rules import compatible
from chestflow.data.findings import RULES, Dataset, Finding
from chestflow.data.groups import equal_pairs
from chestflow.data.same_picture import Pairs, Thumbnails, candidates, same_pictures
from chestflow.data.sources.base import SourceInfo, get
from chestflow.errors import DataError, ValidationFailed
from chestflow.files import read_parquet, write_json

#: Importing a module of rules registers them.
RULE_MODULES = (dataset_rules, confounding_rules)


def validate(params: Params, out: Path, docs: Path | None = None, *, thumbnails: Thumbnails | None = None) -> None:
    """Check ``out/manifest.parquet`` and ``out/rejects.csv``, and write ``out/validation.json``.

    Args:
        params: what is validated against: sections validate, cohorts and tasks.
        out: the folder of all stages' outs.
        docs: where Great Expectations' HTML goes; None writes none.
        thumbnails: where thumbnails come from; None reads the files.

    Raises:
        ValidationFailed: something critical was found; validation.json is written and the table printed before.
    """
    from chestflow.data.expectation_suite import check

    manifest = read_parquet(out / "manifest.parquet")
    rejects = pd.read_csv(out / "rejects.csv", dtype=str, keep_default_na=False)
    expectations = check(manifest, docs)
    findings = [item.as_finding() for item in expectations if not item.met]
    dataset = describe(manifest, rejects, params, thumbnails=thumbnails)
    findings += run_rules(dataset)
    critical = [finding for finding in findings if finding.severity == "critical"]
    warnings = [finding for finding in findings if finding.severity == "warning"]
    report: dict[str, Any] = {
        "passed": not critical,
        "images": len(manifest),
        "critical": [finding.as_dict() for finding in critical],
        "warnings": [finding.as_dict() for finding in warnings],
        "expectations": [asdict(item) for item in expectations],
        "rules": [
            {
                "rule": name,
                "severity": rule.severity,
                "about": rule.about,
                "found": sum(finding.rule == name for finding in findings),
            }
            for name, rule in sorted(RULES.items())
        ],
    }
    write_json(out / "validation.json", report)
    print_table(findings)
    if critical:
        raise ValidationFailed(
            f"{len(critical)} critical finding{'s' if len(critical) > 1 else ''} in the data: see the table above and"
            f" {out / 'validation.json'}, then mend the set or params.yaml and start again"
        )


def describe(
    manifest: pd.DataFrame, rejects: pd.DataFrame, params: Params, *, thumbnails: Thumbnails | None = None
) -> Dataset:
    """What the rules look at; reads the thumbnails of the few images whose labels contradict a near hash's."""
    manifest = manifest.reset_index(drop=True)
    return Dataset(
        manifest=manifest,
        rejects=rejects,
        cohorts=params.cohorts,
        tasks=params.tasks,
        settings=params.validate_,
        infos=infos(sorted(set(manifest["source"].dropna()))),
        twins=twins(manifest, thumbnails),
        complete=params.data.patients_per_set is None,
    )


def infos(names: Sequence[str]) -> dict[str, SourceInfo]:
    """What is published about the sets that have an adapter."""
    found = {}
    for name in names:
        try:
            found[name] = get(name).INFO
        except DataError:  # a set of one's own without an adapter here has nothing published
            continue
    return found


def twins(manifest: pd.DataFrame, thumbnails: Thumbnails | None = None) -> Pairs:
    """Pairs of rows with identical bytes or the same picture, whose labels exclude each other."""
    identical = _contradicting(manifest, equal_pairs(manifest["sha256"]))
    same = same_pictures(manifest, _contradicting(manifest, candidates(manifest)), thumbnails=thumbnails)
    pairs = np.stack([np.concatenate(side) for side in zip(identical, same, strict=True)], axis=1)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _contradicting(manifest: pd.DataFrame, pairs: Pairs) -> Pairs:
    label = manifest["label"].tolist()
    keep = np.array([not compatible(label[a], label[b]) for a, b in zip(*pairs, strict=True)], dtype=bool)
    return pairs[0][keep], pairs[1][keep]


def run_rules(dataset: Dataset) -> list[Finding]:
    """All findings of all rules, in order of rule and place."""
    findings = [finding for rule in RULES.values() for finding in rule.findings(dataset)]
    return sorted(findings, key=lambda finding: (finding.rule, finding.where, finding.message))


def print_table(findings: Sequence[Finding]) -> None:
    """The findings on the screen, critical ones first."""
    from rich.console import Console
    from rich.table import Table

    if not findings:
        print("no rule found anything to report")
        return
    table = Table("severity", "rule", "where", "what was found", title="Validation", show_lines=True)
    for finding in sorted(findings, key=lambda item: item.severity):
        style = "bold red" if finding.severity == "critical" else None
        table.add_row(finding.severity, finding.rule, finding.where, finding.message, style=style)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)
