"""What a run is beside its config: how its weights began, whose features it fuses, how its infection masks were made.

The papers' printed rows name these (``match`` in ``paper_figures``), and no single section of params.yaml holds them.
"""

from __future__ import annotations

from typing import Any


def facts(name: str, params: Any) -> dict[str, Any]:
    """Of the run ``name``: ``clahe`` and ``modality`` of its recipe, ``start``, ``extractor``, ``semi``, and:

    ``extractor_backbone`` is the backbone behind the extractor's features, the run's own where it takes none over.
    ``test_folds`` is how many folds deal the cohort's images out for testing; 1 where its test images are fixed.

    ``semi`` is whether pseudo labels train the segmenter that its slices' infection comes from.
    """
    run = params.runs[name]
    recipe = params.recipes[run.recipe]
    return {
        "clahe": recipe.clahe is not None,
        "modality": recipe.modality,
        "start": start(name, params),
        "extractor": extractor(name, params),
        "extractor_backbone": backbone(run.uses.get("global", name), params),
        "test_folds": 1 if params.cohorts[params.tasks[run.task].cohort].official_test else len(params.folds),
        "semi": recipe.modality == "ct_slice" and bool(params.infection.ct_slice.pseudo.sets),
    }


def attention_of(name: str, params: Any) -> str:
    """Of a run of multi_knowledge, whose map stands for its attention, as a phrase; empty for all else.

    The crops of the closer-looking branches are cut without a gradient, so Grad-CAM of any answer ends at the global
    branch's last map.
    """
    run = params.runs[name]
    if run.method != "multi_knowledge":
        return ""
    if run.config.get("answers") == "heat" and not run.config.get("heat_concat"):
        return "the global branch's heat map: it says where the heat-map branch looks closer"
    return "Grad-CAM of the global branch; what the closer-looking branches saw in their crops is not in it"


def start(name: str, params: Any) -> str:
    """How a run's backbone began: ``self_trans``, ``imagenet``, ``file`` or ``scratch``.

    Without weights of its own that is the start of the run whose network it takes over.
    """
    run = params.runs[name]
    weights = run.config.get("weights")
    if "weights" in run.uses:
        return "self_trans"
    if weights is not None:
        return "imagenet" if weights == "imagenet" else "file"
    return start(run.uses["global"], params) if "global" in run.uses else "scratch"


def extractor(name: str, params: Any) -> str:
    """Whose features are the global branch's: the method of another run, ``decaps`` as ``decaps+peekaboo`` where it
    crops and drops; ``plain`` where it is the run's own, or a plain network of the same backbone.
    """
    run = params.runs[name]
    if "global" not in run.uses:
        return "plain"
    other = params.runs[run.uses["global"]]
    if other.method in ("baselines", run.method) and backbone(run.uses["global"], params) == run.config.get("backbone"):
        return "plain"
    return f"{other.method}+peekaboo" if other.config.get("peekaboo") else str(other.method)


def backbone(name: str, params: Any) -> str | None:
    """The name of a run's backbone, or of the plain network that it is; None for a method that has no choice of one."""
    config = params.runs[name].config
    found: str | None = config.get("network", config.get("backbone"))
    return found
