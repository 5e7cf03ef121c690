"""Stage infection@modality: trains the segmenter of infection that params.yaml asks for, and measures it on held
images.

Writes ``out/infection/<modality>``: the networks (:mod:`.infection`), ``evidence.json``, and where there are pseudo
labels, ``pseudo.json`` and ``pseudo/<image_id>.png`` on the slices' own grids.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestflow.data.recipes import resize_plane
from chestflow.files import atomic_path, write_json
from chestflow.segmentation import infection as files
from chestflow.segmentation import places
from chestflow.segmentation.infection import InfectionSegmenter, Segmenter
from chestflow.segmentation.infection_evidence import Measured, evidence
from chestflow.segmentation.infection_slices import Case, SliceTraining, unlabelled
from chestflow.segmentation.infection_volumes import VolumeTraining
from chestflow.segmentation.planning import Plan, candidates, divide, halves_by_image, judged_groups
from chestflow.segmentation.pseudo_label import Labelled, Log, Loop, names_by_round
from chestflow.segmentation.reading import items_of

if TYPE_CHECKING:
    from chestflow.config_segmentation import Infection, Segment


def fit_infection(
    modality: str,
    manifest: pd.DataFrame,
    splits: pd.DataFrame,
    groups: pd.DataFrame,
    settings: Infection,
    segment: Segment,
    out: Path,
    *,
    seed: int,
    threads: int = 2,
    folds: Sequence[int] | None = None,
    workers: int | None = None,
    checkpoint_root: Path | None = None,
    log: Log | None = None,
) -> None:
    """Write ``out/infection/<modality>``; without sets in its section it says that there is no segmenter.

    Args:
        modality: one of :data:`.places.INFECTED`.
        manifest: all images.
        splits: the cohorts' roles in all folds.
        groups: image_id and group_id.
        settings: section ``infection`` of params.yaml, of which the modality's counts.
        segment: section ``segment``: how lungs are found in volumes.
        out: the folder of all stages' outs.
        seed: of weights, order, augmentation and rounds.
        threads: CPU threads of the trainings, pinned.
        folds: those that are trained; None for all of ``splits``. Who trains by source masks follows from these alone;
            no image that any fold judges gets a pseudo label.
        workers: processes that read; None takes one per core.
        checkpoint_root: where interrupted trainings are kept; None keeps nothing.
        log: takes (what, figures, step), for a tracker; what begins with the modality and the network's name.

    Raises:
        DataError: an image or mask cannot be read (named by image_id), or too few images have masks.
        TrainingError: a loss is no longer finite.
    """
    final, folder = places.infection(out, modality), out / f".infection-{modality}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    finished: list[Loop] = []
    whole = InfectionSegmenter()
    said: dict[str, Any] = {}
    own = settings.ct_slice if modality == "ct_slice" else settings.ct_volume
    try:
        if own.sets:
            common: dict[str, Any] = {
                "seed": seed, "threads": threads, "workers": workers, "checkpoint_root": checkpoint_root,
                "log": _named(log, modality),
            }  # fmt: skip
            trained = splits if folds is None else splits[splits["fold"].isin(folds)]
            judged = judged_groups(trained, groups, manifest, modality)
            table = candidates(manifest, groups, modality, own.sets, "infection_mask", healthy=own.normal_as_empty)
            table = table.merge(manifest[["image_id", "lung_mask"]], on="image_id")
            what = f"infection masks on images of modality {modality}"
            chosen = divide(table, judged, seed, section=f"infection.{modality}", what=what)
            if modality == "ct_slice":
                ever = judged_groups(splits, groups, manifest, modality)
                trainer = _Slices(manifest, groups, ever, chosen, settings, folder, common)
                networks, measured = trainer.networks(), trainer.measured
                finished = trainer.loops
            else:
                items = {item.image_id: item for item in items_of(manifest[manifest["modality"] == modality])}
                training = VolumeTraining(chosen, items, settings.ct_volume, segment, **common)
                networks, measured = _volumes(training, chosen)
            whole.final[modality] = networks[0]
            if len(networks) > 1:
                whole.halves[modality] = networks[1:]
                whole.half_of[modality] = halves_by_image(chosen, groups)
            said = {**_about(chosen), **evidence(measured)}
        files.save(whole, folder)
        write_json(folder / "evidence.json", said)
        if final.exists():
            shutil.rmtree(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(final)
        for loop in finished:
            loop.done()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _about(chosen: Plan) -> dict[str, Any]:
    seen = chosen.table["part"] == 0 if chosen.mode == "held_out" else chosen.table["part"] >= 0
    trained = {"images": int(seen.sum()), "patients": int(chosen.table.loc[seen, "patient"].nunique())}
    return {"mode": chosen.mode, "trained_on": trained}


def _parts(chosen: Plan) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """(who trains, who is measured) for the network that is kept, and for the halves where they are cross-fitted."""
    part = chosen.table["part"].to_numpy()
    if chosen.mode == "held_out":
        return [(part == 0, part == 1)]
    nobody = np.zeros(len(part), bool)
    return [(~nobody, nobody), *[(part != half, part == half) for half in (0, 1)]]


def _part(number: int) -> str:
    """What the network of :func:`_parts` is called."""
    return "final" if number == 0 else f"half-{number - 1}"


def _named(log: Log | None, name: str) -> Log | None:
    """The log with a name before each ``what``: which modality, which network."""
    return None if log is None else lambda what, figures, step: log(f"{name}/{what}", figures, step)


def _volumes(training: VolumeTraining, chosen: Plan) -> tuple[list[Segmenter], list[Measured]]:
    networks, measured, log = [], [], training.log
    for number, (rows, held) in enumerate(_parts(chosen)):
        training.log = _named(log, _part(number))
        networks.append(training.train(rows))
        measured += list(training.measure(networks[-1], held))
    return networks, measured


class _Slices:
    """The slice networks of a plan with their pseudo labels, which are written beside them."""

    def __init__(
        self,
        manifest: pd.DataFrame,
        groups: pd.DataFrame,
        ever_judged: set[str],
        chosen: Plan,
        settings: Infection,
        folder: Path,
        common: dict[str, Any],
    ) -> None:
        self.manifest, self.groups, self.ever_judged, self.chosen = manifest, groups, ever_judged, chosen
        self.settings, self.folder = settings.ct_slice, folder
        self.training = SliceTraining(chosen, settings.ct_slice, **common)
        self.measured: list[Measured] = []
        self.loops: list[Loop] = []

    def networks(self) -> list[Segmenter]:
        networks, record, log = [], {}, self.training.log
        for number, (rows, held) in enumerate(_parts(self.chosen)):
            pool = self._pool(held)
            self.training.log = _named(log, _part(number))
            loop, result, shapes = self.training.train(rows, pool)
            self.loops.append(loop)
            self.measured += self.training.measure(result.model, held)
            networks.append(Segmenter(result.model, self.settings.threshold))
            names = [case[0] for case in pool]
            record[_part(number)] = {"rounds": result.rounds, "masks": names_by_round(names, result)}
            if number == 0:
                self._write(names, result, shapes)
        if self.settings.pseudo.sets:
            write_json(self.folder / "pseudo.json", record)
        return networks

    def _pool(self, held: NDArray[np.bool_]) -> list[Case]:
        """Unlabelled slices without the groups that are measured, and those that any fold judges a classifier on."""
        barred = set(self.chosen.table.loc[held, "group_id"])
        if not self.settings.pseudo.include_test_in_pseudo:
            barred |= self.ever_judged
        return unlabelled(self.manifest, self.groups, self.settings, barred)

    def _write(self, names: list[str], result: Labelled, shapes: list[tuple[int, int]]) -> None:
        for name, target, shape in zip(names, result.targets, shapes, strict=True):
            mask = resize_plane(target[0].astype(np.float32), shape)
            if not self.settings.pseudo.soft_targets:
                mask = (mask > 127.5) * 255.0
            _, encoded = cv2.imencode(".png", np.rint(mask).astype(np.uint8))
            with atomic_path(self.folder / "pseudo" / f"{name}.png") as temporary:
                temporary.write_bytes(encoded.tobytes())
