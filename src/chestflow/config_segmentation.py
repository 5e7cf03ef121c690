"""The sections of params.yaml on lungs and infection; each default says where it comes from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from chestflow.config_base import CanBeOff, Name, Section, Share


class CxrLungs(Section):
    sets: list[Name] = []  # sets whose lung masks train the segmenter; empty leaves X-rays without lung masks
    size: int = Field(128, ge=64, multiple_of=16)  # ours
    epochs: int = Field(12, ge=1)  # ours
    width: int = Field(16, ge=4)  # ours: channels of the first U-Net level
    lr: float = Field(2e-3, gt=0)  # ours
    batch_size: int = Field(16, ge=1)  # ours


class Segment(Section):
    ct_lung_threshold_hu: float = -320.0  # ours: between air and soft tissue
    ct_closing_mm: float = Field(8.0, ge=0)  # ours
    ct_convex_wall: bool = True  # ours: dense lesions at the chest wall count as lung
    ct_prefer_source: bool = False  # ours: take the source's lung masks on CT where it gives them
    #: ours: modalities of which the trained network masks all images alike, those with source masks too
    infection_by_network: list[Literal["ct_slice", "ct_volume"]] = []
    cxr_lungs: CxrLungs = CxrLungs()


class PseudoLabels(Section):
    """Algorithm 1 of paper 003: unlabelled slices, a chunk a round, join the training with their predicted masks."""

    sets: list[Name] = []  # sets whose slices without masks take part; empty leaves the loop out
    chunk: int = Field(100, ge=1)  # paper 003; Inf-Net's code: 5
    threshold: Share = 0.5  # ours
    soft_targets: bool = False  # true: probabilities instead of masks, as the code; never scaled by their range
    include_test_in_pseudo: bool = False  # paper 003: true, transductive; its classifiers are tested on those slices
    epochs: int = Field(9, ge=1)  # Inf-Net's code, per round
    lr: float = Field(3e-4, gt=0)  # Inf-Net's code
    batch_size: int = Field(16, ge=1)  # Inf-Net's code
    final: Literal["paper", "pretrain_finetune"] = "paper"  # the code's: anew on pseudo labels, then on doctors' labels


class InfectionSlices(Section):
    """Inf-Net on axial slices."""

    sets: list[Name] = []  # sets whose infection masks train the segmenter; empty trains none
    backbone: Literal["res2net50", "resnet18"] = "res2net50"  # paper 003; resnet18 is ours, for small machines
    weights: str | None = None  # path of a state dict of the backbone; null starts from scratch
    channel: int = Field(32, ge=4)  # Inf-Net's code
    score_norm: bool = True  # Inf-Net's code: batch norm behind each map; false learns within fewer epochs
    fourth: bool = False  # ours: a reverse-attention stage more, at stride 4, for pictures of about 100 pixels
    #: ours: a second head tells ground glass from consolidation, trained where the sets' masks tell them apart
    kinds: bool = False
    size: int = Field(352, ge=64, multiple_of=32)  # Inf-Net's code
    scales: list[Annotated[float, Field(gt=0, le=2)]] = Field([0.75, 1.0, 1.25], min_length=1)  # Inf-Net's code
    epochs: int = Field(100, ge=1)  # Inf-Net's code, whose loop runs 99
    lr: float = Field(1e-4, gt=0)  # Inf-Net's code
    batch_size: int = Field(24, ge=1)  # Inf-Net's code
    clip_value: float | None = Field(0.5, gt=0)  # Inf-Net's code: of each gradient
    #: step: /10 after each 50 epochs, as stated; compounding: as the code does, by that power of 10 again each epoch
    schedule: Literal["constant", "step", "compounding", "cosine"] = "step"
    weighting: Literal["applied", "cancelled"] = "applied"  # paper 003; in the code the weights cancel
    threshold: Share = 0.5  # ours
    flips: bool = True  # ours
    #: ours: native trains in bfloat16 where the CPU has units for it
    amp: Annotated[Literal["off", "bf16", "native"], CanBeOff] = "off"
    normal_as_empty: bool = False  # ours: images of label normal train with empty masks
    pseudo: PseudoLabels = PseudoLabels()


class InfectionVolumes(Section):
    """Inf-Net slice by slice inside the lungs' box, or a 3D U-Net on patches."""

    sets: list[Name] = []  # sets whose infection masks train the segmenter; empty trains none
    network: Literal["slices", "unet3d"] = "slices"  # ours
    window: tuple[float, float] = (-1350.0, 150.0)  # paper 004: HU, to grey 0 to 255
    slices_per_volume: int = Field(8, ge=1)  # ours: that train; half of them from where the infection is
    slices: InfectionSlices = InfectionSlices()  # its sets and pseudo labels stay empty
    spacing_mm: tuple[float, float, float] | None = (3.0, 1.5, 1.5)  # ours: (z, y, x) of the U-Net; null: the file's
    patch: tuple[int, int, int] = (32, 96, 96)  # ours
    patches_per_volume: int = Field(4, ge=1)  # ours: an epoch's; half of them around infection
    width: int = Field(16, ge=4)  # ours: channels of the U-Net's first level
    epochs: int = Field(40, ge=1)  # ours
    lr: float = Field(1e-3, gt=0)  # ours
    batch_size: int = Field(4, ge=1)  # ours
    threshold: Share = 0.5  # ours
    normal_as_empty: bool = False  # ours: volumes of label normal train with empty masks

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.slices.sets or self.slices.pseudo.sets:
            raise ValueError("slices.sets and slices.pseudo.sets are for pictures: name volumes' sets in sets")
        if self.slices.kinds:
            raise ValueError("slices.kinds is for pictures: in volumes only the infection is told")
        if not self.window[0] < self.window[1]:
            raise ValueError(f"window is {list(self.window)}; the first must be below the second")
        if any(side < 16 or side % 8 for side in self.patch):
            raise ValueError(f"patch is {list(self.patch)}; each side must be a multiple of 8, and 16 or more")
        if self.spacing_mm is not None and min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm is {list(self.spacing_mm)}; each must be above 0")
        return self


class Infection(Section):
    """Segmenters of infection, by modality; without sets there is none, and only source masks count."""

    ct_slice: InfectionSlices = InfectionSlices()
    ct_volume: InfectionVolumes = InfectionVolumes()
