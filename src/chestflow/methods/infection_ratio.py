"""The baseline that every network of paper 004 must beat: how much of the lung is ill, and nothing else.

P(COVID-19) = sigmoid(a log10(r + 1e-4) + b) with r = infection / lung. From the group sizes that the paper's Table III
prints, the rule "COVID-19 if r is 0.005 or more" alone reaches an accuracy of .847 on its test set, against .859 of its
plain network: whether a network knows more than this ratio can only be seen beside it.

r is counted from the two masks that the network is given, on the pack's grid. Resampling by nearest neighbour makes it
differ from the ratio of the original grid, the more the smaller the lesions are, and ``chestflow``'s evaluation, which
fits the same regression on the original ratio, shows both. Where the infection or the lungs of a sample are unknown the
answer is the prior: the share of COVID-19 in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.errors import ConfigError
from chestflow.methods.registry import InputSpec, Method, ours
from chestflow.nn.output import Output
from chestflow.training.phases import Batch, Phase, respond, unknown_as_nan
from chestflow.training.samplers import uniform

#: With fewer known ratios there is nothing to fit, and the prior answers for all.
FEWEST = 10


@dataclass(frozen=True)
class InfectionRatioConfig:
    """Settings of the regression. No paper trained it."""

    epsilon: float = ours(1e-4, "keeps log10 finite at a ratio of 0: a tenth of paper 004's low cut")
    inverse_penalty: float = ours(1e6, "sklearn's C: practically none, but finite where a ratio tells all")
    batch_size: int = ours(20, "volumes read at a time; the fit does not depend on it")

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.inverse_penalty <= 0 or self.batch_size < 1:
            raise ValueError("epsilon and inverse_penalty must be above 0, batch_size at least 1")


class InfectionRatioNetwork(nn.Module):
    """Two masks in, one logit out. The image itself is not looked at.

    Attributes:
        slope, intercept: of the standardised feature.
        prior: log-odds of COVID-19 in training, where the ratio is unknown.
        centre, spread: mean and deviation of log10(r + epsilon) in training.
    """

    reads_infection = True
    #: an infection mask that is NaN is unknown, one of zeros is known to be empty
    unknown_infection_is_nan = True

    def __init__(self, config: InfectionRatioConfig) -> None:
        super().__init__()
        self.epsilon = config.epsilon
        self.slope, self.intercept = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        for name, value in (("prior", 0.0), ("centre", 0.0), ("spread", 1.0)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, image: Tensor, lung: Tensor | None = None, infection: Tensor | None = None) -> Output:
        """Answer from the masks.

        Args:
            image: (B, 1, ...), for the batch's size alone.
            lung: {0, 1} of image's shape; None, all zeros or all ones (what stands for an unknown mask) is unknown.
            infection: {0, 1} of image's shape; None, or NaN in a sample, is unknown.

        Returns:
            Logits (B, 1), and as embedding (B, 1) the standardised log ratio, 0 where it is unknown. No features: there
            is no map of where this network looked, because it only counted.
        """
        ratio = ratio_of(image, lung, infection)
        known = torch.isfinite(ratio)
        feature = torch.log10(torch.where(known, ratio, 0.0) + self.epsilon)
        z = torch.where(known, (feature - self.centre) / self.spread, 0.0)  # type: ignore[operator]
        prior = self.prior.expand_as(z)  # type: ignore[operator]
        return Output(torch.where(known, self.slope * z + self.intercept, prior)[:, None], embedding=z[:, None])


def ratio_of(image: Tensor, lung: Tensor | None, infection: Tensor | None) -> Tensor:
    """infection / lung of each sample, (B,) float32; NaN where either is unknown.

    As in the stage ``segment``, an infection lies in the lungs: what sticks out of the lung mask counts as lung too, so
    that 0 <= r <= 1.
    """
    if lung is None or infection is None:
        return torch.full((len(image),), float("nan"), device=image.device)
    ill = infection.flatten(1).float()
    inside = (lung.flatten(1) > 0).float()
    # a mask that is 1 everywhere stands for unknown lungs; no chest is all lung
    known = (inside.amin(1) == 0) & (inside.amax(1) > 0) & torch.isfinite(ill).all(1)
    count = torch.maximum(inside, ill.nan_to_num(0.0)).sum(1).clamp_min(1.0)
    return torch.where(known, ill.sum(1) / count, float("nan"))


def fitted(config: InfectionRatioConfig, ratio: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """The network's five numbers from training ratios and labels.

    The prior is (n+ + 1/2) / (n + 1), so that its log-odds are finite in a class of its own. With fewer than
    :data:`FEWEST` known ratios, ratios that are all one, or one class only among them, the slope is 0 and the prior
    answers.

    Args:
        config: the settings.
        ratio: (N,), NaN where unknown.
        positive: bool (N,).
    """
    share = (positive.sum() + 0.5) / (len(positive) + 1)
    prior = float(np.log(share / (1 - share)))
    found = {"slope": 0.0, "intercept": prior, "prior": prior, "centre": 0.0, "spread": 1.0}
    known = np.isfinite(ratio)
    y = positive[known]
    if known.sum() < FEWEST or y.all() or not y.any():
        return found
    feature = np.log10(ratio[known] + config.epsilon)
    centre, spread = float(feature.mean()), float(feature.std())
    if spread < 1e-9:
        return {**found, "centre": centre}
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=config.inverse_penalty, max_iter=1000)
    model.fit(((feature - centre) / spread)[:, None], y)
    fit = {"slope": float(model.coef_[0, 0]), "intercept": float(model.intercept_[0])}
    return {**found, **fit, "centre": centre, "spread": spread}


def build(config: InfectionRatioConfig, spec: InputSpec) -> InfectionRatioNetwork:
    """The network.

    Raises:
        ConfigError: X-rays, whose lung and infection masks are projections, or not exactly two classes.
    """
    if spec.modality not in METHOD.modalities:
        raise ConfigError(
            f"infection_ratio counts masks on CT, not {spec.modality}: use a ct_volume or ct_slice recipe"
        )
    if len(spec.classes) != 2:
        raise ConfigError(f"infection_ratio tells two classes apart; the task has {', '.join(spec.classes)}")
    return InfectionRatioNetwork(config)


def phases(config: InfectionRatioConfig) -> list[Phase]:
    """One phase that fits exactly before its first step; its steps have rate 0 and only measure the training loss."""

    def prepare(network: nn.Module, batches: Iterator[Batch]) -> None:
        ratios, targets = [], []
        for batch in batches:
            ratios.append(ratio_of(batch.image, batch.lung, unknown_as_nan(batch)).cpu().numpy())
            targets.append(batch.target.cpu().numpy())
        ratio, target = np.concatenate(ratios).astype(np.float64), np.concatenate(targets)
        order = np.lexsort((target, ratio))  # so that the sums do not depend on the order of reading
        values = fitted(config, ratio[order], target[order] == 1)
        state = network.state_dict()
        network.load_state_dict({name: torch.full_like(state[name], value) for name, value in values.items()})

    def loss(network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        logits = respond(network, batch).logits[:, 0].float()
        return {"loss": F.binary_cross_entropy_with_logits(logits, (batch.target == 1).float())}

    def optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.0)

    return [
        Phase(
            name="count",
            loss=loss,
            optimiser=optimiser,
            sampler=uniform,
            epochs=1,
            batch_size=config.batch_size,
            prepare=prepare,
        )
    ]


METHOD = Method(
    name="infection_ratio",
    citation="Logistic regression on the infection ratio, the baseline that paper 004's Table III asks for",
    modalities=("ct_volume", "ct_slice"),
    config=InfectionRatioConfig,
    build=build,
    phases=phases,
)
