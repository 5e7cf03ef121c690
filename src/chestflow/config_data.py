"""The sections of params.yaml on images: sets, cohorts, splits, recipes, tasks; defaults are ours."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from chestflow.config_base import Count, Name, Probability, Section, Share
from chestflow.data.manifest import POSITIVE, Label, Modality


class Data(Section):
    sets: list[Name] = Field(min_length=1)  # folders under data/, read by the adapters of the same names
    patients_per_set: int | None = Field(None, ge=10)  # ours: a stratified subset for quick trials; null takes all
    id_key: str = "chestflow"  # key of the hashes that stand for patients and images; set your own for private data


class Validation(Section):
    min_images_per_class: int = Field(10, ge=1)  # ours
    confounding_warn: Probability = 0.9  # ours: balanced accuracy of guessing the class from the format


class Cohort(Section):
    sets: list[Name] = Field(min_length=1)
    modality: Modality
    labels: list[Label] | None = None  # which labels take part; null takes all
    external: list[Name] = []  # sets that are tested on and never trained on
    official_test: bool = True  # the sets' own test images are the test in every fold; false deals them into the folds
    views: list[str] | None = None  # X-ray views that take part, unknown ones always; null takes all, laterals too
    annotated: list[Name] = []  # sets of which only images with a lesion mask or boxes take part
    #: set -> label -> images, null for all there are; a set that is named here gives nothing else
    take: dict[Name, dict[Label, Count | None]] = {}
    #: steps of label -> images that leave the folds for the test role, as whole groups; equal first steps nest
    moved_to_test: list[dict[Label, Count]] = []

    @model_validator(mode="after")
    def _names_its_own(self) -> Self:
        for what, named in (("take", self.take), ("annotated", self.annotated)):
            for source in named:
                if source not in self.sets + self.external:
                    raise ValueError(f"{what} names the set {source}, which is in neither sets nor external")
        for source, labels in self.take.items():
            if not labels:
                raise ValueError(f"take.{source} names no label: leave the set out of sets instead")
        asked = {label for labels in self.take.values() for label in labels}
        asked |= {label for step in self.moved_to_test for label in step}
        outside = sorted(asked - set(self.labels or asked))
        if outside:
            raise ValueError(f"take or moved_to_test names the label {outside[0]}, which is not in labels")
        return self


class Split(Section):
    k: int = Field(5, ge=2)  # paper 001, 004
    tune_share: Share = 0.2  # ours: of what is not test
    hamming: int = Field(4, ge=0, le=64)  # ours: perceptual hashes this close are compared
    correlation: Probability = 0.99  # ours: and are the same picture at this correlation of 32x32 thumbnails


class Clahe(Section):
    clip: float = Field(4.0, gt=0)  # paper 001's code
    tiles: int = Field(4, ge=1)  # paper 001's code


class Recipe(Section):
    modality: Modality
    size: list[Annotated[int, Field(ge=8)]] = Field(min_length=2, max_length=3)  # (H, W), or (D, H, W) for volumes
    clahe: Clahe | None = None  # images only
    keep: Literal["all", "lungs", "outside_lungs", "outside_box", "border"] = "all"  # ours: the rest becomes black
    keep_aspect: bool = False  # ours: papers 001 and 002 resize without; true pads to a square first
    spacing_mm: list[float] | None = None  # (z, y, x) for volumes; paper 004: 1.25, 0.7168, 0.7168
    max_downscale: float = Field(0.5, gt=0, le=1)  # paper 004: one common factor, about 1/2

    @model_validator(mode="after")
    def _fits_modality(self) -> Self:
        want = 3 if self.modality == "ct_volume" else 2
        if len(self.size) != want:
            raise ValueError(f"size needs {want} numbers for {self.modality}, has {len(self.size)}")
        if self.modality == "ct_volume" and self.clahe is not None:
            raise ValueError("clahe is for images; volumes stay in HU")
        if self.modality == "ct_volume" and (self.spacing_mm is None or len(self.spacing_mm) != 3):
            raise ValueError("a ct_volume recipe needs spacing_mm: [z, y, x]")
        return self


class Task(Section):
    cohort: Name
    classes: dict[str, list[Label]]  # class -> labels, in index order; covid19 is the positive class and stands last

    @model_validator(mode="after")
    def _positive_last(self) -> Self:
        if len(self.classes) < 2:
            raise ValueError("a task needs at least two classes")
        if list(self.classes)[-1] != POSITIVE:
            raise ValueError(f"the last class must be {POSITIVE}, the positive one")
        used = [label for labels in self.classes.values() for label in labels]
        if len(used) != len(set(used)):
            raise ValueError("a label stands in two classes")
        return self
