"""What a run is beside its config: how its weights began, whose features it fuses, how its infection masks were made.

The papers' printed rows name these (``match`` in ``paper_figures``), and no single section of params.yaml holds them.
"""

from __future__ import annotations

from typing import Any


def facts(name: str, params: Any) -> dict[str, Any]:
    """Of the run ``name``: ``clahe`` and ``modality`` of its recipe, ``start``, ``extractor`` and ``semi``.

    ``semi`` is whether pseudo labels train the segmenter of slices.
    """
    run = params.runs[name]
    recipe = params.recipes[run.recipe]
    return {
        "clahe": recipe.clahe is not None,
        "modality": recipe.modality,
        "start": start(name, params),
        "extractor": extractor(name, params),
        "semi": bool(params.infection.ct_slice.pseudo.sets),
    }


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
    theirs = other.config.get("network", other.config.get("backbone"))
    if other.method in ("baselines", run.method) and theirs == run.config.get("backbone"):
        return "plain"
    return f"{other.method}+peekaboo" if other.config.get("peekaboo") else str(other.method)
