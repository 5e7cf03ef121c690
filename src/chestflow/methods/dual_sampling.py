"""Dual-sampling attention network on chest CT volumes, COVID-19 against CAP (paper 004).

"Dual-Sampling Attention Network for Diagnosis of COVID-19 from Community Acquired Pneumonia", section II: a 3D ResNet
whose class activation map (eq. 1) is made a soft infection mask (eq. 2) and held to the segmented infection by an
attention loss (eq. 3). Two such networks, one trained by uniform and one by size-balanced sampling, are two runs here;
their ensemble weighs them by infection ratio. No code was published.

The map's gradient reaches the backbone alone: the kernel is the classifier's weight, copied and detached.

Mixed precision: the engine's bfloat16 is for GPUs. On CPUs the weight gradients of bfloat16 3D convolutions are wrong
where the depth is exactly 2, so train in float32 there. The loss is in float32 in any case.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chestflow.errors import ConfigError
from chestflow.losses.attention import attended, attention_loss
from chestflow.methods.registry import InputSpec, Method, at_least_one, ours, paper
from chestflow.nn.cam_attention import CamHead
from chestflow.nn.input import CtInput
from chestflow.nn.output import Output
from chestflow.nn.resnet3d import BLOCKS, ResNet3d
from chestflow.training.augmentation import random_mirror
from chestflow.training.phases import Batch, Phase, Sampler
from chestflow.training.samplers import size_balanced, uniform

MIN_SIDE = 16
POSITIVE_INDEX = 1


@dataclass(frozen=True)
class DualSamplingConfig:
    """Settings of paper 004; each field says where its default comes from."""

    depth: int = paper(34, "II-B", choices=tuple(BLOCKS))
    width: int = paper(64, "II-B")
    last_stride: int = paper(1, "II-B, 1/16 of the input", choices=(1, 2))
    shortcut: str = ours("B", "not stated; the cited code has both", choices=("A", "B"))
    stem_stride_z: int = ours(2, "the paper says 1/16 in every dimension; the cited code takes 1", choices=(1, 2))
    num_outputs: int = paper(1, "II-B, one probability by a sigmoid", choices=(1, 2))
    window_level: float = paper(-600.0, "III-A")
    window_width: float = paper(1500.0, "III-A")
    mask_lungs: bool = paper(True, "II-A")
    attention: bool = paper(True, "II-B; false is the plain ResNet of the comparison")
    alpha: float = paper(100.0, "eq. 2")
    beta: float = paper(0.4, "eq. 2")
    lam: float = paper(0.5, "lambda, II-B")
    upsample_first: bool = paper(True, "II-B: upsampled, then normalised")
    detach_range: bool = ours(False, "whether minimum and maximum of the map pass no gradient; not stated")
    skip_empty: bool = ours(True, "an empty infection mask on COVID-19 says the segmenter failed; not stated")
    sampling: str = paper("uniform", "II-C: one network of each", choices=("uniform", "size_balanced"))
    sampling_mode: str = paper("group_first", "II-C: a group, then an image", choices=("group_first", "per_sample"))
    covid_cut: float = paper(0.030, "II-C: COVID-19 below is small")
    cap_cut: float = paper(0.001, "II-C: CAP above is large")
    lr: float = paper(2e-4, "III-B")
    lr_step: int = paper(5, "III-B: epochs between reductions")
    lr_gamma: float = paper(0.1, "III-B")
    weight_decay: float = paper(1e-4, "III-B")
    decoupled_weight_decay: bool = ours(False, "Adam with the L2 term of its time; true is AdamW")
    batch_size: int = paper(20, "III-B")
    accumulate: int = ours(1, "micro-batches a step, for small GPUs; batch norm sees a micro-batch")
    checkpointing: bool = ours(False, "recompute blocks in the backward pass: less memory, more time")
    epochs: int = paper(20, "III-B")
    patience: int | None = ours(None, "the paper has no early stopping")
    monitor: str = ours("auroc", "the paper's best evaluation performance names no metric")
    clip_norm: float | None = ours(None, "none stated")
    augment: str = ours("none", "none stated", choices=("none", "flips"))

    def __post_init__(self) -> None:
        at_least_one(self, "width", "lr_step")
        if self.alpha <= 0 or not 0 <= self.beta <= 1 or self.lam < 0 or self.lr <= 0 or self.weight_decay < 0:
            raise ValueError("alpha and lr must be above 0, beta in [0, 1], lam and weight_decay 0 or more")
        if self.window_width <= 0:
            raise ValueError(f"window_width is {self.window_width}; it must be above 0 HU")


class DualSamplingNetwork(nn.Module):
    """One of the two networks: input window, 3D ResNet, classifier with its activation map."""

    def __init__(self, config: DualSamplingConfig) -> None:
        super().__init__()
        self.input = CtInput(config.window_level, config.window_width, config.mask_lungs)
        self.backbone = ResNet3d(
            config.depth,
            config.width,
            config.last_stride,
            config.shortcut,  # type: ignore[arg-type]
            config.stem_stride_z,
            checkpointing=config.checkpointing,
        )
        self.head = CamHead(self.backbone.out_channels, config.num_outputs, config.attention)

    def forward(self, image: Tensor, lung: Tensor | None = None) -> Output:
        """(B, 1, D, H, W) in HU and its lung mask to logits and the map A (B, 1, D/16, H/16, W/16), rounded up."""
        features = self.backbone(self.input(image, lung))
        logits, pooled, cam = self.head(features)
        return Output(logits, features=features, attention=cam, embedding=pooled)


def takes_part(batch: Batch) -> Tensor:
    """The COVID-19 samples that have an infection mask, bool (B,)."""
    return (batch.target == POSITIVE_INDEX) & batch.has_infection


def attended_loss(config: DualSamplingConfig, output: Output, batch: Batch) -> dict[str, Tensor]:
    """L = L_c + lambda L_ex, with L_ex over the COVID-19 samples that have an infection mask, and its parts.

    L_ex is the mean over those samples of the whole step: of a micro-batch, their sum over the number that makes the
    micro-batches' losses, weighted by their samples, add up to that mean. Thus lambda is the same however a step is
    split, and so is ``covid_without_infection``, the number of COVID-19 samples of the step that L_ex leaves out.
    """
    logits = output.logits.float()
    if config.num_outputs == 1:
        classification = F.binary_cross_entropy_with_logits(logits[:, 0], (batch.target == POSITIVE_INDEX).float())
    else:
        classification = F.cross_entropy(logits, batch.target)
    parts = {"loss": classification, "classification": classification.detach()}
    if output.attention is None or config.lam == 0:
        return parts
    attention, count = attention_loss(
        output.attention,
        batch.infection,
        takes_part(batch),
        alpha=config.alpha,
        beta=config.beta,
        upsample_first=config.upsample_first,
        detach_range=config.detach_range,
        skip_empty=config.skip_empty,
        divisor=None if batch.counted is None else batch.counted * batch.share,
    )
    left_out = (batch.target == POSITIVE_INDEX).sum() - count
    return {
        "loss": classification + config.lam * attention,
        "classification": classification.detach(),
        "attention": attention.detach(),
        "covid_without_infection": left_out.float() / batch.share,
    }


def sampler(config: DualSamplingConfig) -> Sampler:
    """Uniform, or by size groups (II-C)."""
    if config.sampling == "uniform":
        return uniform
    return size_balanced(covid_cut=config.covid_cut, cap_cut=config.cap_cut, mode=config.sampling_mode)


def build(config: DualSamplingConfig, spec: InputSpec) -> DualSamplingNetwork:
    """The network.

    Raises:
        ConfigError: no CT volumes, volumes too small, or not exactly two classes.
    """
    if spec.modality not in METHOD.modalities:
        raise ConfigError(f"dual_sampling reads CT volumes, not {spec.modality}: use a ct_volume recipe")
    if len(spec.shape) != 3 or min(spec.shape) < MIN_SIDE:
        raise ConfigError(f"dual_sampling needs volumes of at least {MIN_SIDE} a side; the recipe makes {spec.shape}")
    if len(spec.classes) != 2:
        raise ConfigError(f"dual_sampling tells two classes apart; the task has {', '.join(spec.classes)}")
    return DualSamplingNetwork(config)


def phases(config: DualSamplingConfig) -> list[Phase]:
    """One phase; the second network is another run with the other ``sampling``."""

    def loss(network: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return attended_loss(config, network(batch.image, batch.lung), batch)

    def counts(batch: Batch) -> Tensor:
        return attended(batch.infection, takes_part(batch), config.skip_empty).sum()

    def optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        kind = torch.optim.AdamW if config.decoupled_weight_decay else torch.optim.Adam
        return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)

    def step(stepped: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.StepLR(stepped, config.lr_step, config.lr_gamma)

    return [
        Phase(
            name="attend" if config.attention else "classify",
            loss=loss,
            optimiser=optimiser,
            sampler=sampler(config),
            epochs=config.epochs,
            batch_size=config.batch_size,
            schedule=step,
            augment=random_mirror() if config.augment == "flips" else None,
            monitor=config.monitor,
            patience=config.patience,
            accumulate=config.accumulate,
            clip_norm=config.clip_norm,
            counts=counts if config.attention and config.lam > 0 else None,
        )
    ]


METHOD = Method(
    name="dual_sampling",
    citation="Dual-sampling attention network for COVID-19 against CAP (paper 004), eqs. 1 to 3",
    modalities=("ct_volume",),
    config=DualSamplingConfig,
    build=build,
    phases=phases,
)
