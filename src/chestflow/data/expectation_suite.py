"""Great Expectations on the manifest: the suite is a JSON file of this package, the result plain and without dates."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from chestflow.data.findings import Finding, Severity, count_of
from chestflow.data.manifest import COLUMNS

SUITE = "manifest"


@dataclass(frozen=True)
class Expectation:
    """One expectation and how the manifest did.

    Attributes:
        kind: Great Expectations' name of it.
        column: what it is about; None for the table.
        severity: what a failure means.
        met: whether all rows keep to it.
        unexpected: how many rows do not; None where it is about the table.
    """

    kind: str
    column: str | None
    severity: Severity
    met: bool
    unexpected: int | None

    def as_finding(self) -> Finding:
        """The failure in a sentence; values are left out, they may be names."""
        what = self.kind.removeprefix("expect_").replace("_", " ")
        rows = "" if self.unexpected is None else f" in {count_of(self.unexpected, 'row')}"
        about = f"column {self.column}: " if self.column else ""
        return Finding(
            rule=self.kind,
            severity=self.severity,
            where=f"manifest.{self.column}" if self.column else "manifest",
            message=f"The manifest does not keep to an expectation{rows}: {about}{what}.",
            figures={} if self.unexpected is None else {"rows": self.unexpected},
        )


def suite() -> dict[str, Any]:
    """The suite as kept in the package."""
    return json.loads(files("chestflow.data").joinpath("expectations", f"{SUITE}.json").read_text())


def check(manifest: pd.DataFrame, docs: Path | None = None) -> list[Expectation]:
    """Run the suite.

    Args:
        manifest: all images; columns that hold lists take no part.
        docs: where the HTML data docs go; they hold dates and load scripts from the web, so they are never an out.
            None writes none.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx  # 3 s: imported by this stage alone
    from great_expectations.checkpoint.actions import UpdateDataDocsAction

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    actions = []
    if docs is not None:
        docs.mkdir(parents=True, exist_ok=True)
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())}
        site = {"class_name": "SiteBuilder", "store_backend": store}
        context.add_data_docs_site("docs", {**site, "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"}})
        actions.append(UpdateDataDocsAction(name="docs", site_names=["docs"]))
    kept = context.suites.add(gx.ExpectationSuite(**suite()))
    asset = context.data_sources.add_pandas(SUITE).add_dataframe_asset(SUITE)
    batch = asset.add_batch_definition_whole_dataframe(SUITE)
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=SUITE, data=batch, suite=kept))
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(name=SUITE, validation_definitions=[definition], actions=actions, result_format="SUMMARY")
    )
    plain = manifest.drop(columns=[name for name, dtype in COLUMNS.items() if dtype == "object"], errors="ignore")
    outcome = checkpoint.run(batch_parameters={"dataframe": plain})
    found = [_plain(result) for run in outcome.run_results.values() for result in run.results]
    return sorted(found, key=lambda item: (item.column or "", item.kind))


def _plain(result: Any) -> Expectation:
    config, figures = result.expectation_config, result.result
    unexpected = figures.get("unexpected_count")
    return Expectation(
        kind=config.type,
        column=config.kwargs.get("column"),
        severity="critical" if str(getattr(config.severity, "value", config.severity)) == "critical" else "warning",
        met=bool(result.success),
        unexpected=None if unexpected is None else int(unexpected),
    )
