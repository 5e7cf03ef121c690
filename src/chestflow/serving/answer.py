"""From a file to an answer: a probability with its range and class, or an abstention with its reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chestflow.errors import ChestflowError, DataError, TrainingError
from chestflow.evaluation.calibration import OperatingPoint
from chestflow.imaging.images import Volume
from chestflow.serving import abstention, bundle, inputs
from chestflow.serving.infection import UNKNOWN, Marker
from chestflow.serving.networks import Networks, Opinion

if TYPE_CHECKING:
    from chestflow.imaging.read import Radiograph

ANSWERED, ABSTAINED, UNREADABLE = "answered", "abstained", "unreadable"
#: As where the ensemble was tuned: probabilities this close to 0 or 1 have no better logarithm.
EPS = 1e-7


@dataclass(frozen=True)
class Answer:
    """One file's answer. Figures are null unless ``status`` is ``answered``.

    Attributes:
        file: as the caller named it.
        status: answered, abstained or unreadable.
        model: name and version.
        notice: what must stand before the answer where the model was trained on phantoms; else empty.
        reason, detail: why there is no answer.
        label: the class; covid19 where its probability reaches the threshold, else the most probable other one.
        probability: of covid19, calibrated.
        low, high: the range over the folds' networks; null where there is one fold only.
        threshold: the operating point; null where the most probable class is called.
        probabilities: of each class.
        ratio: infection / lung where both masks are known, else ``unknown``.
        ratio_from: where it came from: ``mask`` (the caller's), ``network`` (the model's own segmenter), ``unknown``.
        network: which network answered: single, ensemble, or dual sampling's uniform where the ratio is unknown.
        unusual: distance from the training set / limit; above 1 abstains.
        overlay: where the heat map was written.
    """

    file: str
    status: str
    model: str
    notice: str = ""
    reason: str | None = None
    detail: str | None = None
    label: str | None = None
    probability: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    ratio: float | str = UNKNOWN
    ratio_from: str = UNKNOWN
    network: str | None = None
    unusual: float | None = None
    overlay: str | None = None

    def plain(self) -> dict[str, Any]:
        """For JSON; figures rounded to what they are worth."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


def softmax(logits: np.ndarray) -> np.ndarray:
    """(C,) scores to probabilities."""
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


class Predictor:
    """A bundle ready to answer.

    Args:
        folder: the bundle's.
        model: name and version, as each answer shows them.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        self.bundle = bundle.read(folder)
        self.networks = Networks(self.bundle, folder)
        self.marker = Marker(folder, self.bundle.modality)
        self._segmenter: Any = None

    def answer(
        self, path: Path, *, name: str | None = None, infection_mask: Path | None = None, overlay: Path | None = None
    ) -> Answer:
        """Answer for one file or folder; whatever is wrong with it is in the answer and never raised.

        Args:
            path: DICOM, PNG, JPEG or NIfTI, or a folder of one DICOM series.
            name: how the answer names it; its path by default.
            infection_mask: the infection on the same grid; gives the ratio by which an ensemble is weighted. Without
                one the model's own segmenter draws it, if it has one.
            overlay: where to write the heat map, a PNG.

        Raises:
            TrainingError: the model's own files are damaged.
        """
        named = str(path) if name is None else name
        basis: dict[str, Any] = {"file": named, "model": self.model, "notice": self.bundle.notice}
        try:
            image = inputs.load(path, self.bundle.modality)
            infection = self._infection(image, infection_mask)
        except inputs.Abstained as refused:
            return Answer(**basis, status=ABSTAINED, reason=refused.reason, detail=refused.detail)
        except FileNotFoundError:
            return Answer(**basis, status=UNREADABLE, reason="missing_file", detail="no such file")
        except PermissionError:
            return Answer(**basis, status=UNREADABLE, reason="no_permission", detail="the file may not be read")
        except DataError as error:
            reason, detail = getattr(error, "reason", "unreadable"), getattr(error, "detail", str(error))
            return Answer(**basis, status=UNREADABLE, reason=reason, detail=detail)
        return self._decide(image, infection, basis, overlay)

    def _infection(self, image: Radiograph | Volume, mask: Path | None) -> np.ndarray | None:
        if mask is None:
            return None
        from chestflow.imaging.read import read_mask

        shape = image.hu.shape if isinstance(image, Volume) else image.pixels.shape
        try:
            return read_mask([mask], shape)
        except FileNotFoundError:
            raise DataError("the infection mask is missing: check --infection-mask") from None

    def lungs(self, image: Radiograph | Volume) -> np.ndarray | None:
        """Lung mask on the original grid; None where nothing can make one."""
        if isinstance(image, Volume):
            from chestflow.segmentation.lungs import segment_ct

            rules = self.bundle.segmentation
            # a model that was packed before this rule existed was trained without it
            wall = bool(rules.get("ct_convex_wall", False))
            return segment_ct(image.hu, image.spacing_mm, rules["ct_lung_threshold_hu"], rules["ct_closing_mm"], wall)
        file = self.folder / bundle.LUNGS
        if not file.exists():
            return None
        from chestflow.segmentation import cxr_lungs

        if self._segmenter is None:
            self._segmenter = cxr_lungs.load(file)
        return cxr_lungs.predict(self._segmenter, image.uint8())

    def _decide(
        self, image: Radiograph | Volume, infection: np.ndarray | None, basis: dict[str, Any], overlay: Path | None
    ) -> Answer:
        try:
            marked = self.marker.mark(image, self.lungs(image), infection)
            ratio = marked.ratio
            opinions = self.networks.ask(image, marked, self._parts(ratio))
        except TrainingError:
            raise
        except ChestflowError as error:
            return Answer(**basis, status=UNREADABLE, reason="unsupported", detail=str(error))
        if not all(opinion.frame.geometry["kept"] for opinion in opinions):
            detail = "no lungs can be found, and this model was trained on pictures cut by their lungs"
            return Answer(**basis, status=ABSTAINED, reason="lung_area", detail=detail)
        found = [self.networks.statistics(opinion.member) for opinion in opinions]
        judged = abstention.verdict([o.relative for o in opinions], [o.share for o in opinions], found)
        unusual = float(np.median([opinion.relative for opinion in opinions]))
        basis |= {"ratio": UNKNOWN if ratio is None else ratio, "ratio_from": marked.ratio_from, "unusual": unusual}
        if judged is not None:
            return Answer(**basis, status=ABSTAINED, reason=judged[0], detail=judged[1])
        probabilities, spread = self.probabilities(opinions, ratio)
        classes, positive = self.bundle.classes, float(probabilities[-1])
        point, others = self._point(ratio), int(np.argmax(probabilities[:-1]))
        called = positive >= (probabilities[others] if point.threshold is None else point.threshold)
        answer = Answer(
            **basis,
            status=ANSWERED,
            label=classes[-1] if called else classes[others],
            probability=positive,
            low=spread[0] if spread else None,
            high=spread[1] if spread else None,
            threshold=point.threshold,
            probabilities={name: round(float(p), 6) for name, p in zip(classes, probabilities, strict=True)},
            network=self._network(ratio),
            overlay=None if overlay is None else str(overlay),
        )
        if overlay is not None:
            from chestflow.serving.overlay import write

            write(overlay, answer, image, self.heat(opinions, ratio))
        return answer

    def _parts(self, ratio: float | None) -> set[str]:
        """Which networks are asked: without a ratio the balanced one has no weight."""
        if self.bundle.weighting is None:
            return {"member"} if self.bundle.shares else {"single"}
        return {"uniform"} if ratio is None else {"uniform", "balanced"}

    def _network(self, ratio: float | None) -> str:
        if self.bundle.weighting is None:
            return "ensemble" if self.bundle.shares else "single"
        return "uniform" if ratio is None else "ensemble"

    def _point(self, ratio: float | None) -> OperatingPoint:
        """How the answer is scaled and called: a network that answers alone has its own operating point."""
        alone = self._network(ratio) == "uniform" and self.bundle.uniform is not None
        return self.bundle.uniform if alone and self.bundle.uniform is not None else self.bundle.point

    def _weight(self, opinion: Opinion, ratio: float | None) -> float:
        if self.bundle.shares:
            return self.bundle.shares[opinion.member.run]
        if self.bundle.weighting is None or ratio is None:
            return 1.0
        w = self.bundle.weighting.at(ratio)
        return w if opinion.member.part == "uniform" else 1.0 - w

    def _combine(self, opinions: list[Opinion], ratio: float | None) -> np.ndarray:
        """Logits averaged over folds, then the runs' probabilities joined by weight, then the temperature."""
        temperature = self._point(ratio).temperature
        runs = list(dict.fromkeys(opinion.member.run for opinion in opinions))
        if len(runs) == 1:
            return softmax(np.mean([opinion.logits for opinion in opinions], axis=0) / temperature)
        joined = np.zeros(len(self.bundle.classes))
        for run in runs:
            mine = [opinion for opinion in opinions if opinion.member.run == run]
            joined += self._weight(mine[0], ratio) * softmax(np.mean([o.logits for o in mine], axis=0))
        return softmax(np.log(np.clip(joined, EPS, 1 - EPS)) / temperature)

    def probabilities(
        self, opinions: list[Opinion], ratio: float | None
    ) -> tuple[np.ndarray, tuple[float, float] | None]:
        """Calibrated probabilities (C,), and the range of covid19's over folds where there are several."""
        folds = sorted({opinion.member.fold for opinion in opinions})
        each = [float(self._combine([o for o in opinions if o.member.fold == fold], ratio)[-1]) for fold in folds]
        whole = self._combine(opinions, ratio)
        return whole, (min(each), max(each)) if len(each) > 1 else None

    def heat(self, opinions: list[Opinion], ratio: float | None) -> np.ndarray | None:
        """The networks' maps on the original grid, weighted as their probabilities are, in [0, 1].

        Maps of one size and recipe are averaged as they are, others on the original grid. None where none has one.
        """
        from chestflow.serving.overlay import full_heat

        groups: dict[tuple[str, tuple[int, ...]], list[tuple[Opinion, np.ndarray, float]]] = {}
        for opinion in opinions:
            weight = self._weight(opinion, ratio)
            if opinion.heat is not None and weight > 0:
                key = (opinion.frame.recipe, opinion.heat.shape)
                groups.setdefault(key, []).append((opinion, opinion.heat, weight))
        alone = len(groups) == 1
        full = None
        for group in groups.values():
            total, frame = sum(weight for _, _, weight in group), group[0][0].frame
            heat = np.asarray(sum(weight * heat for _, heat, weight in group)) / total
            part = full_heat(_ranged(heat) if alone else heat, frame.geometry, frame.shape)
            full = total * part if full is None else full + total * part
        if full is None:
            return None
        return part if alone else _ranged(full)


def _ranged(heat: np.ndarray) -> np.ndarray:
    """To [0, 1] by its own range; a constant map becomes zeros."""
    low, high = float(np.min(heat)), float(np.max(heat))
    return np.asarray((heat - low) / (high - low)) if high > low else np.zeros_like(heat)
