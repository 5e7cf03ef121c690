"""Training the volume segmenter: Inf-Net on slices inside the lungs' box, or a 3D U-Net on patches."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chestflow.errors import DataError, naming_image
from chestflow.parallel import cores, ordered_map
from chestflow.segmentation import volume_network, volume_slices
from chestflow.segmentation.infecting import VOLUME_READERS, looks, probability
from chestflow.segmentation.infection import InfectionSegmenter, Segmenter
from chestflow.segmentation.infection_evidence import Measured, compare
from chestflow.segmentation.planning import Plan
from chestflow.segmentation.pseudo_label import Log, Loop, Slices, fingerprint
from chestflow.segmentation.reading import Item, from_source, lungs_of_volume
from chestflow.segmentation.training_loop import Course, pinned_threads
from chestflow.segmentation.volume_network import Region, VolumeShape
from chestflow.training import checkpoints

if TYPE_CHECKING:
    from chestflow.config_segmentation import InfectionVolumes, Segment


def read_slices(
    item: Item, settings: InfectionVolumes, segment: Segment, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The slices of a volume that train, (n, S, S), and their infection (n, 1, S, S); runs in a worker."""
    from chestflow.imaging.read import read_volume

    with naming_image(item.image_id, "read for the infection segmenter"):
        volume = read_volume(Path(item.path))
        lung, _ = lungs_of_volume(item, volume.hu, volume.spacing_mm, segment)
        truth = from_source(item, volume.hu.shape)
        infection = np.zeros(volume.hu.shape, bool) if truth is None else truth
        rng = np.random.default_rng([seed, zlib.crc32(item.image_id.encode())])
        boxes = volume_slices.lung_boxes(lung, volume.spacing_mm)
        chosen = volume_slices.choose(boxes, infection, settings.slices_per_volume, rng)
        size = settings.slices.size
        images = volume_slices.squares(volume.hu, chosen, size, settings.window)
        return images, volume_slices.mask_squares(infection, chosen, size)


def read_region(item: Item, shape: VolumeShape, segment: Segment) -> Region | None:
    """What the U-Net trains on of a volume, None where no lungs are found; runs in a worker."""
    from chestflow.imaging.read import read_volume

    with naming_image(item.image_id, "read for the infection segmenter"):
        volume = read_volume(Path(item.path))
        lung, _ = lungs_of_volume(item, volume.hu, volume.spacing_mm, segment)
        if not lung.any():
            return None
        truth = from_source(item, volume.hu.shape)
        infection = np.zeros(volume.hu.shape, bool) if truth is None else truth
        return volume_network.region(volume.hu, volume.spacing_mm, lung, shape, infection)


def _require_lungs(items: list[Item], found: list[bool]) -> None:
    """Say which volumes train nothing, since no network looks where there are no lungs."""
    without = [item.image_id for item, seen in zip(items, found, strict=True) if not seen]
    if len(without) == len(items):
        raise DataError("infection.ct_volume.sets: no lungs were found in any of these volumes: check their HU")
    if without:
        print(
            f"warning: infection.ct_volume: no lungs were found in {', '.join(without)}: check their HU; they train"
            " nothing",
            file=sys.stderr,
        )


class VolumeTraining:
    """Trains on some rows of a plan and measures on others.

    Args:
        chosen: who trains and who is measured.
        items: the manifest's items by image_id.
        settings: ``infection.ct_volume`` of params.yaml.
        segment: how the lungs are found.
        seed, threads, workers: as in the stage.
        checkpoint_root: where interrupted trainings are kept.
        log: takes (what, figures, step).
    """

    def __init__(
        self,
        chosen: Plan,
        items: dict[str, Item],
        settings: InfectionVolumes,
        segment: Segment,
        *,
        seed: int,
        threads: int,
        workers: int | None,
        checkpoint_root: Path | None,
        log: Log | None = None,
    ) -> None:
        self.settings, self.segment, self.table = settings, segment, chosen.table
        self.items = [items[name] for name in chosen.table["image_id"]]
        self.seed, self.threads, self.workers = seed, threads, workers
        self.root, self.log = checkpoint_root, log
        self.few = min(VOLUME_READERS, cores() if workers is None else workers)

    def train(self, rows: NDArray[np.bool_]) -> Segmenter:
        """Train on some rows; an interrupted training goes on from its last epoch.

        Raises:
            DataError: none of these volumes holds lungs; where some do not, they are named and the others train.
            TrainingError: the loss is no longer finite.
        """
        items = [item for item, wanted in zip(self.items, rows, strict=True) if wanted]
        return self._slices(items) if self.settings.network == "slices" else self._unet(items)

    def _folder(self, *data: NDArray) -> Path | None:
        if self.root is None:
            return None
        facts = {
            "settings": self.settings.model_dump(),
            "seed": self.seed,
            "threads": self.threads,
            "data": fingerprint(*data),
        }
        return checkpoints.place(self.root, checkpoints.key(facts), "infection_volumes", 0)

    def _slices(self, items: list[Item]) -> Segmenter:
        own = self.settings
        work = partial(read_slices, settings=own, segment=self.segment, seed=self.seed)
        parts = list(ordered_map(work, items, self.few, chunk=1))
        _require_lungs(items, [bool(len(part[0])) for part in parts])
        data = Slices(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))
        folder = self._folder(data.images, data.targets)
        loop = Loop(
            data, np.zeros((0, own.slices.size, own.slices.size), np.uint8), own.slices,
            seed=self.seed, threads=self.threads, folder=folder, log=self.log, section="infection.ct_volume.slices",
        )  # fmt: skip
        model = loop.run().model
        loop.done()
        return Segmenter(model, own.slices.threshold, own.window)

    def _unet(self, items: list[Item]) -> Segmenter:
        own = self.settings
        shape = VolumeShape(own.width, own.patch, own.spacing_mm, own.window)
        read = list(ordered_map(partial(read_region, shape=shape, segment=self.segment), items, self.few, chunk=1))
        _require_lungs(items, [part is not None for part in read])
        regions = [part for part in read if part is not None]
        folder = self._folder(*chain.from_iterable((part.values, part.infection) for part in regions))
        model = volume_network.build(shape, self.seed)
        log = self.log
        volume_network.train(
            model, regions, Course(own.epochs, own.lr, "cosine"),
            per_volume=own.patches_per_volume, batch_size=own.batch_size, seed=self.seed, threads=self.threads,
            section="infection.ct_volume",
            resume=checkpoints.load(folder) if folder is not None else None,
            after_epoch=None
            if folder is None
            else (lambda state: checkpoints.save(folder, state, {"epoch": state["epoch"]})),
            log=None if log is None else (lambda epoch, value: log("volumes", {"loss": value}, epoch)),
        )  # fmt: skip
        if folder is not None:
            checkpoints.clear(folder)
        return Segmenter(model, own.threshold)

    def measure(self, network: Segmenter, rows: NDArray[np.bool_]) -> Iterator[Measured]:
        """Truth against prediction on the volumes' own grids, with the ratio by found and by true lungs."""
        from chestflow.imaging.read import read_mask

        asked = InfectionSegmenter({"ct_volume": network})
        about = {str(row.image_id): (str(row.image_id), str(row.source), str(row.patient)) for row in self._rows()}
        items = [item for item, wanted in zip(self.items, rows, strict=True) if wanted]
        for item, seen in looks(items, self.segment, self.workers):
            with pinned_threads(self.threads):
                found = probability(asked, seen)
            with naming_image(item.image_id, "measured"):
                truth = from_source(item, seen.shape)
                true_lung = read_mask(item.lung_mask, seen.shape) if item.lung_mask else None
            yield compare(
                about[item.image_id],
                np.zeros(seen.shape, bool) if truth is None else truth,
                np.zeros(seen.shape, np.float32) if found is None else found,
                network.threshold,
                spacing=seen.spacing,
                lung=seen.lung,
                true_lung=true_lung,
            )

    def _rows(self) -> Iterator[Any]:
        return self.table.itertuples()
