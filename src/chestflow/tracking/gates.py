"""Whether a model version may be promoted: evidence against the bounds of params.yaml, one verdict a gate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from chestflow.tracking import evidence as read

if TYPE_CHECKING:
    from chestflow.config import Gates
    from chestflow.serving.bundle import Bundle

STAGING, PRODUCTION = "staging", "production"
TARGETS = (STAGING, PRODUCTION)
#: Upper end of the interval of guessing COVID-19 from the source (0.5 is chance) up to which the two are unrelated.
UNRELATED = 0.60


@dataclass(frozen=True)
class Verdict:
    """One gate. ``absolute`` ones hold whatever reason is given for an override."""

    gate: str
    value: str
    bound: str
    passed: bool
    absolute: bool = False
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """For the journal."""
        return asdict(self)


def _shown(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "not measured"


def _at_least(gate: str, value: float, bound: float, note: str = "") -> Verdict:
    return Verdict(gate, _shown(value), f"at least {bound:.3f}", value >= bound, note=note)


def _at_most(gate: str, value: float, bound: float, note: str = "") -> Verdict:
    return Verdict(gate, _shown(value), f"at most {bound:.3f}", value <= bound, note=note)


def _worst_subgroup(found: dict[str, Any], bound: float, smallest: int, target: str) -> Verdict:
    gate = "worst subgroup AUROC"
    groups = read.subgroups(found)
    if groups is None:
        return _at_least(gate, math.nan, bound, "the evaluation holds no subgroups")
    large = [group for group in groups if group.images >= smallest]
    able = [group for group in large if math.isfinite(group.auroc.value)]
    undefined = [f"{group.name} ({group.images} images)" for group in large if group not in able]
    unjudged = f"; not judged, AUROC undefined: {', '.join(undefined)}" if undefined else ""
    if not able:
        note = f"no subgroup of {smallest} or more images can be judged{unjudged}"
        return Verdict(gate, "not measured", f"at least {bound:.3f}", target == STAGING, note=note)
    worst = min(able, key=lambda group: group.auroc.value)
    return _at_least(gate, worst.auroc.value, bound, f"{worst.name} ({worst.images} images){unjudged}")


def _uniform_alone(found: dict[str, Any], bound: float) -> list[Verdict]:
    """An ensemble answers by its uniform network where no infection ratio is known: that network must hold as well."""
    alone = read.uniform_alone(found)
    if alone is None:
        return []
    return [_at_least("AUROC without a ratio, lower bound", alone.lo, bound, f"value {_shown(alone.value)}")]


def _shortcut(found: dict[str, Any], bound: float, target: str) -> Verdict:
    """Refuses where the network may have learned the hospital: it can be told from the picture, and tells the class.

    Where class and source coincide, no figure on these images can show that the disease was learned, however badly a
    simple probe tells the sources. Where they have nothing to do with each other, telling the source helps nobody.
    """
    gate, limit = "source AUROC", f"at most {bound:.3f}"
    measured = read.shortcut(found)
    if measured is None:
        note = read.why_no_shortcut(found) or "counts once it is measured"
        return Verdict(gate, "not measured", limit, True, note=note)
    if measured.one_source:
        return Verdict(gate, "not measured", limit, True, note="one source: nothing to judge")
    value = measured.source_auroc.value
    if measured.confounded:
        return Verdict(gate, _shown(value), limit, False, note=measured.sentence)
    if not math.isfinite(value):
        return Verdict(gate, "not measured", limit, target == STAGING, note=measured.source_auroc.why)
    told = measured.class_from_source
    note = f"from {measured.view}"
    if value > bound:
        note = f"COVID-19 guessed from the source: balanced accuracy {_shown(told.value)}, at most {_shown(told.hi)}"
        if told.hi <= UNRELATED:
            return Verdict(gate, _shown(value), limit, True, note=f"{note}: knowing the source does not help")
    return _at_most(gate, value, bound, note)


def judge(
    found: dict[str, Any],
    bundle: Bundle,
    gates: Gates,
    target: str,
    *,
    smallest_subgroup: int = 20,
    research_use: bool = False,
) -> list[Verdict]:
    """Every gate of a promotion, in the order in which they are shown. A figure that is missing does not pass, except
    the source's where the cohort has one source or cannot be probed.

    Args:
        found: the version's own evaluation, as it was packed with it.
        bundle: the version's own facts.
        gates: the target's bounds.
        target: ``staging`` or ``production``.
        smallest_subgroup: smaller subgroups do not count.
        research_use: the installation declares that it never serves patients, so licences do not block.
    """
    figures = read.figures(found)
    auroc, sensitivity, ece = (figures.get(name, read.Figure()) for name in ("auroc", "sensitivity", "ece"))
    verdicts = [
        _at_least("AUROC, lower bound", auroc.lo, gates.auroc_lo, f"value {_shown(auroc.value)}"),
        _at_least(
            "sensitivity, lower bound", sensitivity.lo, gates.sensitivity_lo, f"value {_shown(sensitivity.value)}"
        ),
        _at_most("calibration error (ECE)", ece.value, gates.ece_max),
        _worst_subgroup(found, gates.worst_subgroup_auroc, smallest_subgroup, target),
        *_uniform_alone(found, gates.auroc_lo),
        _shortcut(found, gates.source_auroc_max, target),
    ]
    if target == PRODUCTION:
        verdicts += [_phantom(bundle), _licences(bundle, research_use)]
    return verdicts


def _phantom(bundle: Bundle) -> Verdict:
    value = "phantoms" if bundle.phantom else "people's images"
    return Verdict("trained on", value, "no phantoms", not bundle.phantom, absolute=True)


def _licences(bundle: Bundle, research_use: bool) -> Verdict:
    value = {"yes": "commercial use allowed", "no": "non-commercial", "unstated": "unstated"}[bundle.commercial_use]
    allowed = bundle.commercial_use == "yes"
    note = "; ".join(bundle.licences)
    if not allowed and research_use:
        note = "promote.research_use is declared" + (f"; {note}" if note else "")
    return Verdict("licences of the data", value, "commercial use", allowed or research_use, absolute=True, note=note)
