"""The network of paper 003: a global branch, two that look closer, and their fusion.

The global branch sees the slice, the heat-map branch the region where the global one's last map is strongest, the
infected branch the infection left and right. Each pools its last map; the fusion classifies all pools together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from chestflow.imaging.cam import min_max
from chestflow.nn import knowledge_regions as regions
from chestflow.nn.knowledge_branches import Known, UsedBranch
from chestflow.nn.output import Output

BRANCHES = ("global", "heat", "infected", "fusion")
#: What may answer: a branch, or the mean of the first three while no fusion is trained.
ANSWERS = (*BRANCHES, "mean")
#: Branches whose pools an answer needs besides its own.
_NEEDS = {
    "global": {"global"},
    "heat": {"heat"},
    "infected": {"global", "infected"},
    "fusion": {"global", "heat", "infected"},
}


class Changes(Protocol):
    """Random changes of crops while training (:class:`chestflow.training.region_augmentation.Jitter`)."""

    def borders(self, border: Tensor) -> Tensor: ...
    def crops(self, crops: Tensor) -> Tensor: ...


@dataclass
class KnowledgeOutput(Output):
    """Also the logits of each branch that answered (B, C), and the heat map's box (B, 4)."""

    branches: dict[str, Tensor] | None = None
    heat_box: Tensor | None = None


@dataclass(frozen=True)
class RegionSettings:
    """How regions are found; see :mod:`chestflow.nn.knowledge_regions`.

    Attributes:
        tau: threshold of the heat map; None where no heat map is used.
        source: of S: relu_sum, sum, abs_max or cam.
        norm: of H: min_max or paper.
        connectivity: 8 or 4.
        mode: ``crop`` cuts out the component's box, ``mask`` blackens all but the component.
        heat_margin, margin: what the heat map's and the infection's boxes grow by.
        min_side: of a box, in pixels.
        sides: what parts the infection's left from its right: the slice's ``midline``, or its ``lungs``.
    """

    tau: float | None
    source: regions.Source = "relu_sum"
    norm: regions.Norm = "min_max"
    connectivity: int = 8
    mode: str = "crop"
    heat_margin: float = 0.0
    margin: float = 0.05
    min_side: int = 16
    sides: str = "midline"


class MultiKnowledge(nn.Module):
    """The network. Children: ``input``, ``global_branch`` and, as far as they are asked for, ``heat``, ``infected`` and
    ``fusion``.

    Args:
        layer: the input layer of the network's own branches.
        branches: name -> branch, of :data:`BRANCHES`.
        how: see :class:`RegionSettings`.
        answers: which branch's logits the output has.
        concatenated: the heat-map branch classifies its pool together with the global one.
    """

    reads_infection = True

    def __init__(
        self, layer: nn.Module, branches: dict[str, nn.Module], how: RegionSettings, answers: str, concatenated: bool
    ) -> None:
        super().__init__()
        self.input, self.how, self.answers, self.concatenated = layer, how, answers, concatenated
        for name, branch in branches.items():
            self.add_module("global_branch" if name == "global" else name, branch)

    def get_extra_state(self) -> Tensor:
        """Which branch answers: it changes from phase to phase, so an interrupted training must know it."""
        return torch.tensor(ANSWERS.index(self.answers), device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take it back."""
        self.answers = ANSWERS[int(state)]

    def branch(self, name: str) -> Any:
        """The branch of that name."""
        return self.get_submodule("global_branch" if name == "global" else name)

    def look(self, image: Tensor, lung: Tensor | None, infection: Tensor | None, heat: bool) -> Known:
        """The global branch on whole slices (B, 1, H, W), and with ``heat`` where its last map is strongest."""
        branch, how, size = self.branch("global"), self.how, (image.shape[2], image.shape[3])
        cam = heat and how.source == "cam"
        summed: Tensor | None = None
        if not isinstance(branch, UsedBranch):
            features, pool = branch.look(self.input(image))
            summed = branch.class_map(features) if cam else None
        elif cam:
            features, pool, summed = branch.explain(image, lung, infection)
        else:
            features, pool = branch.look(image, lung, infection)
        if not heat:
            return Known(pool, features=features)
        assert features is not None and how.tau is not None  # noqa: PT018
        if summed is None:
            summed = regions.heat_sum(features, how.source)
        region = regions.attended(regions.heat_map(summed, size, how.norm), how.tau, how.connectivity)
        box = regions.widen(regions.boxes(region), how.heat_margin, how.min_side, size)
        return Known(pool, box, region if how.mode == "mask" else None, features, summed)

    def forward(
        self,
        image: Tensor,
        lung: Tensor | None = None,
        infection: Tensor | None = None,
        *,
        heads: Sequence[str] | None = None,
        known: Known | None = None,
        changes: Changes | None = None,
    ) -> KnowledgeOutput:
        """Slices (B, 1, H, W) in [0, 255] and their infection masks to logits.

        Without an infection mask, or with an empty one, the infected branch's vectors are zero and its backbone does
        not run; its answer then depends on the whole slice alone.

        Args:
            image: grey values.
            lung: for the infection's sides where the lungs part them, and for another run's network that uses it.
            infection: {0, 1} of the same shape, or None.
            heads: which branches classify; None takes those that the answer needs.
            known: what the global branch said of these slices before.
            changes: of the crops, while training.
        """
        if heads is None:
            heads = BRANCHES[:3] if self.answers == "mean" else (self.answers,)
        needed = set().union(*(_NEEDS[head] for head in heads))
        if self.concatenated and "heat" in heads:
            needed.add("global")
        if known is None:
            known = self.look(image, lung, infection, heat="heat" in needed)
        shown = image.detach()  # crops follow from the map, but no gradient flows along them
        pools = {"global": [known.pool]}
        if "heat" in needed:
            pools["heat"] = [self._attended(shown, known, changes)]
        if "infected" in needed:
            pools["infected"] = list(self._infected(shown, lung, infection, changes).unbind(1))
        vectors = {head: torch.cat(self._joined(head, pools), dim=1) for head in heads}
        logits = {head: self.branch(head).head(vectors[head]) for head in heads}
        if self.answers in logits:
            answer, vector = logits[self.answers], vectors[self.answers]
        else:
            answer, vector = torch.stack(list(logits.values())).mean(0), vectors[heads[-1]]
        # Grad-CAM needs a map that the answer depends on; the heat-map branch shows its own
        apart = self.answers == "heat" and not self.concatenated
        attention = min_max(known.heat) if apart and known.heat is not None else None
        return KnowledgeOutput(
            answer,
            features=None if apart else known.features,
            attention=attention,
            embedding=vector,
            branches=logits,
            heat_box=known.box,
        )

    def _joined(self, head: str, pools: dict[str, list[Any]]) -> list[Tensor]:
        """The pools that a head classifies, in the paper's order: global, heat map, left, right."""
        if head == "heat":
            return [*(pools["global"] if self.concatenated else []), *pools["heat"]]
        return [pool for name in BRANCHES[:3] if name in _NEEDS[head] for pool in pools[name]]

    def _attended(self, image: Tensor, known: Known, changes: Changes | None) -> Tensor:
        assert known.box is not None
        border = regions.edges(known.box)
        if known.region is not None:
            image = image * known.region[:, None]
            height, width = image.shape[2:]
            border = torch.tensor([[0.0, 0.0, height, width]], device=image.device).expand(len(image), -1)
        if changes is not None:
            border = changes.borders(border)
        crops = regions.crop_resize(image, border)
        pooled: Tensor = self.branch("heat").look(self.input(crops if changes is None else changes.crops(crops)))[1]
        return pooled

    def _infected(
        self, image: Tensor, lung: Tensor | None, infection: Tensor | None, changes: Changes | None
    ) -> Tensor:
        """Pools (B, 2, D) of the infection left and right; zeros for a side without any, which no layer sees."""
        branch, how = self.branch("infected"), self.how
        found = image.new_zeros(2 * len(image), branch.backbone.out_channels, dtype=torch.float32)
        if infection is None:
            return found.view(len(image), 2, -1)
        left = regions.left_of(lung) if how.sides == "lungs" and lung is not None else None
        box, present = regions.side_boxes(infection, how.margin, how.min_side, left)
        where = present.flatten().nonzero()[:, 0]  # twice the slice's place, and one more for its right side
        if len(where):
            border = regions.edges(box.flatten(0, 1)[where])
            if changes is not None:
                border = changes.borders(border)
            crops = regions.crop_resize(image, border, where // 2)
            seen = self.input(crops if changes is None else changes.crops(crops))
            apart = len(branch.backbones) > 1
            for side, chosen in enumerate((where % 2 == 0, where % 2 == 1) if apart else (where >= 0,)):
                if chosen.any():
                    found = found.index_copy(0, where[chosen], branch.look(seen[chosen], side)[1])
        return found.view(len(image), 2, -1)
