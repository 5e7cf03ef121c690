"""Training the slice segmenter of a cohort's pictures: which slices, which pseudo labels, and what they come to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.data.recipes import resize_plane
from chestflow.errors import ConfigError, naming_image
from chestflow.evaluation.segmentation_metrics import dice
from chestflow.parallel import ordered_map
from chestflow.segmentation import slice_network
from chestflow.segmentation.infection import Segmenter
from chestflow.segmentation.infection_evidence import Measured, compare
from chestflow.segmentation.planning import Plan
from chestflow.segmentation.pseudo_label import Labelled, Log, Loop, Slices, fingerprint
from chestflow.segmentation.reading import paths, with_paths
from chestflow.segmentation.training_loop import pinned_threads
from chestflow.training import checkpoints

if TYPE_CHECKING:
    from chestflow.config_segmentation import InfectionSlices

Case = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True)
class Whole:
    """A slice on its own grid: grey values, and its infection, lungs and kinds where the source gives them.

    ``kinds`` are numbers of :data:`chestflow.data.references.LESIONS`, 0 outside the infection.
    """

    grey: NDArray[np.uint8]
    infection: NDArray[np.bool_]
    lung: NDArray[np.bool_] | None
    kinds: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Square:
    """A slice (S, S) as the network sees it: infection 255, and 0 without masks; its shape on its own grid.

    ``kinds`` is 0 outside the infection and -1 where the kind is not known.
    """

    grey: NDArray[np.uint8]
    infection: NDArray[np.uint8]
    kinds: NDArray[np.int8]
    shape: tuple[int, int]


def read_square(case: Case, size: int) -> Square:
    """A slice on the network's square; runs in a worker."""
    whole = read_whole((*case, ()))
    mask = resize_plane(whole.infection.astype(np.float32), (size, size)) > 0.5
    kinds = np.where(mask, -1, 0).astype(np.int8)
    if whole.kinds is not None:
        nearest = cv2.resize(whole.kinds, (size, size), interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int8)
        kinds[mask & (nearest > 0)] = nearest[mask & (nearest > 0)]
    height, width = whole.grey.shape
    return Square(resize_plane(whole.grey, (size, size)), mask.astype(np.uint8) * np.uint8(255), kinds, (height, width))


def read_whole(case: tuple[str, str, tuple[str, ...], tuple[str, ...]]) -> Whole:
    """A slice on its own grid; runs in a worker."""
    from chestflow.imaging.read import read_classes, read_mask, read_radiograph

    image_id, path, infection, lung = case
    with naming_image(image_id, "read for the infection segmenter"):
        grey = read_radiograph(Path(path)).uint8()
        found = read_mask(infection, grey.shape)
        return Whole(grey, found, read_mask(lung, grey.shape) if lung else None, read_classes(infection, grey.shape))


def unlabelled(manifest: pd.DataFrame, groups: pd.DataFrame, settings: InfectionSlices, barred: set[str]) -> list[Case]:
    """The slices that pseudo labels are made for, in order of image_id.

    Args:
        manifest: all images.
        groups: image_id and group_id.
        settings: ``pseudo.sets`` says whose slices.
        barred: groups that the network must not see.
    """
    group_of = groups.set_index("image_id")["group_id"]
    rows = manifest[(manifest["modality"] == "ct_slice") & manifest["source"].isin(settings.pseudo.sets)]
    rows = rows[~with_paths(rows["infection_mask"])].sort_values("image_id")
    if settings.normal_as_empty:  # these are among the labelled ones
        rows = rows[~((rows["label"] == "normal").fillna(False).astype(bool) & rows["source"].isin(settings.sets))]
    rows = rows[~rows["image_id"].map(group_of).fillna(rows["image_id"]).isin(barred)]
    return [(image, path, ()) for image, path in zip(rows["image_id"], rows["path"], strict=True)]


class SliceTraining:
    """The slices of a plan, read once; trains on some of its rows and measures on others.

    Args:
        chosen: who trains and who is measured; the table has ``infection_mask`` and ``lung_mask``.
        settings: ``infection.ct_slice`` of params.yaml.
        seed, threads, workers: as in the stage.
        checkpoint_root: where interrupted trainings are kept.
        log: takes (what, figures, step).

    Raises:
        ConfigError: kinds of lesion are asked for, and no mask tells them apart.
    """

    def __init__(
        self,
        chosen: Plan,
        settings: InfectionSlices,
        *,
        seed: int,
        threads: int,
        workers: int | None,
        checkpoint_root: Path | None,
        log: Log | None = None,
    ) -> None:
        self.settings, self.table = settings, chosen.table
        self.seed, self.threads, self.workers = seed, threads, workers
        self.root, self.log = checkpoint_root, log
        masks = self.table["infection_mask"].map(paths)
        read = self._read(list(zip(self.table["image_id"], self.table["path"], masks, strict=True)))
        self.images, self.targets, self.kinds, _ = self._stack(read)
        if settings.kinds and not (self.kinds > 0).any():
            raise ConfigError(
                f"infection.ct_slice.kinds: no mask of {', '.join(settings.sets)} tells ground glass from"
                " consolidation; name a set whose masks do, or set it to false"
            )

    def train(self, rows: NDArray[np.bool_], pool: list[Case]) -> tuple[Loop, Labelled, list[tuple[int, int]]]:
        """Train on some rows and the pool's pseudo labels; the others say how good each round is.

        Returns:
            The loop, whose state is to be removed when its result is written; what it ends with; the pool's shapes.
        """
        pictures, _, _, shapes = self._stack(self._read(pool))
        doctors = Slices(self.images[rows], self.targets[rows], self.kinds[rows] if self.settings.kinds else None)
        folder = None
        if self.root is not None:
            data = fingerprint(doctors.images, doctors.targets, self.kinds[rows], pictures)
            facts = {"settings": self.settings.model_dump(), "seed": self.seed, "threads": self.threads, "data": data}
            folder = checkpoints.place(self.root, checkpoints.key(facts), "infection", 0)
        held = np.flatnonzero(~rows)

        def measure(model: slice_network.SliceNetwork) -> dict[str, float]:
            found = slice_network.probabilities(model, self.images[held])[:, 0] > self.settings.threshold
            scores = [dice(a, b > 127) for a, b in zip(found, self.targets[held, 0], strict=True) if b.any()]
            return {"dice": float(np.mean(scores)) if scores else float("nan"), "slices": float(len(scores))}

        loop = Loop(
            doctors, pictures, self.settings,
            seed=self.seed, threads=self.threads, folder=folder, measure=measure, log=self.log,
        )  # fmt: skip
        return loop, loop.run(), shapes

    def measure(self, model: slice_network.SliceNetwork, rows: NDArray[np.bool_]) -> list[Measured]:
        """Truth against prediction on the slices' own grids."""
        table = self.table[rows]
        cases = list(
            zip(
                table["image_id"],
                table["path"],
                table["infection_mask"].map(paths),
                table["lung_mask"].map(paths),
                strict=True,
            )
        )
        network = Segmenter(model, self.settings.threshold)
        about = zip(table["image_id"], table["source"], table["patient"].astype(str), strict=True)
        measured = []
        for names, whole in zip(about, ordered_map(read_whole, cases, self.workers), strict=True):
            told = None
            with pinned_threads(self.threads):
                found = network.of_picture(whole.grey)
                if self.settings.kinds and whole.kinds is not None:
                    told = (whole.kinds, network.kinds_of_picture(whole.grey))
            lung = whole.lung
            measured.append(
                compare(names, whole.infection, found, network.threshold, lung=lung, true_lung=lung, kinds=told)
            )
        return measured

    def _read(self, cases: list[Case]) -> Iterator[Square]:
        return ordered_map(partial(read_square, size=self.settings.size), cases, self.workers)

    def _stack(
        self, read: Iterator[Square]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int8], list[tuple[int, int]]]:
        """Images (N, S, S), infection (N, 1, S, S), kinds (N, S, S) and the slices' own shapes."""
        parts, side = list(read), self.settings.size
        images = np.zeros((len(parts), side, side), np.uint8)
        infection = np.zeros((len(parts), 1, side, side), np.uint8)
        kinds = np.zeros((len(parts), side, side), np.int8)
        for place, part in enumerate(parts):
            images[place], infection[place, 0], kinds[place] = part.grey, part.infection, part.kinds
        return images, infection, kinds, [part.shape for part in parts]
