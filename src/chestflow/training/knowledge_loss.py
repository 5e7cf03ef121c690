"""The loss of paper 003's branches: binary cross entropy of each, on what a frozen global branch remembers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.errors import ConfigError, DataError, TrainingError
from chestflow.training.knowledge_memory import Memory
from chestflow.training.phases import Batch, LossFunction
from chestflow.training.region_augmentation import Jitter, Strength

POSITIVE_INDEX = 1


def branch_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Eq. 3 on logits (B, 1) or (B, 2): binary cross entropy, mean over outputs and batch, in float32."""
    logits = logits.float()
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], (target == POSITIVE_INDEX).float())
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(target, logits.shape[1]).float())


def loss_of(heads: Sequence[str], *, remembers: bool, strength: Strength | None) -> LossFunction:
    """The sum of the branches' losses, and each by its name where there are several.

    Args:
        heads: which branches learn.
        remembers: the global branch is frozen and sees slices as they are, so it is asked once for each.
        strength: of the crops' random changes; None leaves them as they are.
    """
    memory = Memory() if remembers else None

    def loss(network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        if "infected" in heads:
            require_infection(batch)
        known = None if memory is None else memory.recall(network, batch, heat=bool({"heat", "fusion"} & set(heads)))
        changes = None if strength is None else Jitter(strength, generator)
        output = network(batch.image, batch.lung, batch.infection, heads=heads, known=known, changes=changes)
        parts = {head: branch_loss(output.branches[head], batch.target) for head in heads}
        named = {head: value.detach() for head, value in parts.items()} if len(heads) > 1 else {}
        return {"loss": torch.stack(list(parts.values())).sum(), **named}

    return loss


def require_infection(batch: Batch) -> None:
    """Refuse to teach the infected branch where it has nothing to see, or where processes would wait for each other.

    Raises:
        TrainingError: no picture of the pack has an infection mask.
        ConfigError: several processes; one without infected sides would not run the layers that the others wait for.
    """
    if batch.infection is None:
        raise TrainingError(
            "no slice of the pack has an infection mask, which the infected branch looks at: give masks, let the"
            " pipeline segment the infection, or set answers to heat or global"
        )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise ConfigError("the infected branch is trained in one process, without torchrun: some batches do not run it")


def require_infected_pixels(batches: Iterable[Batch]) -> None:
    """Refuse to train the infected branch where every mask is empty: it would learn from zeros alone.

    Args:
        batches: of the whole train role; it reads on only until the first infected pixel.

    Raises:
        DataError: there are masks, and not one of them has a pixel.
        TrainingError, ConfigError: see :func:`require_infection`.
    """
    count = 0
    for batch in batches:
        require_infection(batch)
        assert batch.infection is not None
        if (batch.infection > 0.5).any():
            return
        count += int(batch.has_infection.sum())
    raise DataError(
        f"all {count} infection masks of the train role are empty, so the infected branch has nothing to look at: give"
        " masks, train the infection segmenter longer, lower its threshold, or set answers to heat or global"
    )
