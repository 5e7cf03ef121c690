"""How the phases of paper 003's network begin: which branch answers, and the first weights of the backbones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import nn

from chestflow.nn.backbones import Backbone, load_weights
from chestflow.nn.knowledge_branches import Branch, UsedBranch
from chestflow.nn.knowledge_network import MultiKnowledge
from chestflow.training.knowledge_loss import require_infected_pixels
from chestflow.training.phases import Batch


def begin(
    answers: str, fresh: Sequence[str], follow: bool, weights: str | None
) -> Callable[[nn.Module, Iterator[Batch]], None]:
    """A phase's preparation.

    Args:
        answers: which branch answers from now on.
        fresh: branches whose backbones begin to train.
        follow: they start as copies of the global one's.
        weights: else from these, see :func:`~chestflow.nn.backbones.load_weights`; None leaves them as they are.

    Returns:
        What raises DataError where the infected branch would begin with nothing to look at.
    """

    def prepare(network: nn.Module, batches: Iterator[Batch]) -> None:
        assert isinstance(network, MultiKnowledge)
        network.answers = answers
        if "infected" in fresh:
            require_infected_pixels(batches)
        for name in fresh:
            for backbone in network.branch(name).backbones:
                if follow:
                    follow_global(network.branch("global"), backbone, weights)
                elif weights:
                    load_weights(backbone, weights)

    return prepare


def follow_global(first: Branch | UsedBranch, backbone: Backbone, weights: str | None) -> None:
    """Start a backbone as a copy of the global branch's.

    What another run's network has but does not use (DECAPS leaves the last stage out) was not trained with it, so that
    part starts from ``weights``, or stays as it is: from a pretraining under ``uses``, or random.
    """
    used = isinstance(first, UsedBranch)
    idle = first.idle if isinstance(first, UsedBranch) else frozenset()
    if idle and weights:
        load_weights(backbone, weights)
    theirs = first.get_submodule("network.backbone" if used else "backbone").state_dict()
    backbone.load_state_dict({key: v for key, v in theirs.items() if key not in idle}, strict=not idle)
