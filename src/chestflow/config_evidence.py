"""The sections of params.yaml on evaluation, registration and promotion; each default says where it comes from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from chestflow.config_base import Probability, Section, Share


class Evaluate(Section):
    bootstrap: int = Field(1000, ge=50)  # ours: patient-clustered resamples
    prevalences: list[Share] = [0.01, 0.05, 0.2]  # ours: where PPV and NPV are stated
    ratio_cuts: list[Share] = [0.005, 0.03]  # paper 004, Table III
    min_group: int = Field(20, ge=2)  # ours: smaller subgroups are shown but never gate a promotion
    attention_threshold: Probability = 0.4  # paper 004: beta; where a lesion's outline is known
    box_threshold: Probability = 0.4  # ours: where a source draws boxes; paper 001's code has 0.75 and 0.85


class Register(Section):
    members: Literal["all", "best"] = "all"  # ours: the folds' networks averaged, or the best on its tune role


class Gates(Section):
    """Lower and upper bounds that the evidence must meet."""

    auroc_lo: Probability = 0.80  # ours: lower end of the 95% interval
    sensitivity_lo: Probability = 0.60  # ours
    ece_max: Probability = 0.15  # ours
    worst_subgroup_auroc: Probability = 0.65  # ours: over subgroups of at least evaluate.min_group
    source_auroc_max: Probability = 0.95  # ours: of predicting the source from the picture's border, once measured


class Promote(Section):
    staging: Gates = Gates()
    production: Gates = Gates(auroc_lo=0.90, sensitivity_lo=0.80, ece_max=0.08, worst_subgroup_auroc=0.80)
    research_use: bool = False  # true: never serves patients, so licences do not block
