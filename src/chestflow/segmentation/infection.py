"""The trained infection segmenters: written by the stage ``infection``, read by ``segment`` and by a served model.

The folder holds ``infection.json`` (what each modality's network is), its weights as safetensors, and where halves were
cross-fitted, ``halves.json``: which network may segment which image.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chestflow.data.recipes import resize_plane
from chestflow.errors import ChestflowError, TrainingError
from chestflow.files import atomic_path, read_json, write_json
from chestflow.segmentation import slice_network, volume_network, volume_slices
from chestflow.segmentation.slice_network import Shape, SliceNetwork
from chestflow.segmentation.volume_network import VolumeNetwork, VolumeShape

FILE, HALVES = "infection.json", "halves.json"
Mask = NDArray[np.bool_]
Probability = NDArray[np.float32]


@dataclass
class Segmenter:
    """One modality's network with its threshold; ``window`` (HU) where it looks at a volume's slices."""

    model: SliceNetwork | VolumeNetwork
    threshold: float = 0.5
    window: tuple[float, float] | None = None

    def of_picture(self, grey: NDArray[np.uint8]) -> Probability:
        """(H, W) probabilities of a slice (H, W) in [0, 255]."""
        assert isinstance(self.model, SliceNetwork)
        size = self.model.shape.size
        found = slice_network.probabilities(self.model, resize_plane(grey, (size, size))[None])[0, 0]
        return resize_plane(found, grey.shape)

    def kinds_of_picture(self, grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W): 0 outside the infection, inside it a number of :data:`chestflow.data.references.LESIONS`.

        Raises:
            ValueError: a network without the second head.
        """
        assert isinstance(self.model, SliceNetwork)
        size = self.model.shape.size
        told = slice_network.kind_probabilities(self.model, resize_plane(grey, (size, size))[None])[0]
        likeliest = np.stack([resize_plane(plane, grey.shape) for plane in told]).argmax(0) + 1
        return np.where(self.of_picture(grey) > self.threshold, likeliest, 0).astype(np.uint8)

    def of_volume(self, hu: NDArray[np.int16], spacing: tuple[float, float, float], lung: Mask) -> Probability:
        """(D, H, W) probabilities; 0 outside the lungs' boxes."""
        if isinstance(self.model, VolumeNetwork):
            return volume_network.probability(self.model, hu, spacing, lung)
        assert self.window is not None
        boxes = volume_slices.lung_boxes(lung, spacing)
        seen = volume_slices.squares(hu, boxes, self.model.shape.size, self.window)
        found = slice_network.probabilities(self.model, seen)[:, 0]
        return volume_slices.assemble(found, boxes, hu.shape)


@dataclass
class InfectionSegmenter:
    """What makes infection masks, by modality; a modality without a network gives None.

    Attributes:
        final: modality -> the network for new files.
        halves: modality -> the two networks that saw the groups of the other half alone.
        half_of: modality -> image_id -> which of them may segment it.
    """

    final: dict[str, Segmenter] = field(default_factory=dict)
    halves: dict[str, list[Segmenter]] = field(default_factory=dict)
    half_of: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that have a network."""
        return tuple(sorted(self.final))

    def for_image(self, image_id: str) -> InfectionSegmenter:
        """The networks that may segment an image of the cohorts: those that did not see its group."""
        chosen = {}
        for modality, network in self.final.items():
            half = self.half_of.get(modality, {}).get(image_id)
            chosen[modality] = network if half is None else self.halves[modality][half]
        return InfectionSegmenter(chosen)

    def probability_slice(self, grey: NDArray[np.uint8]) -> Probability | None:
        """Probability of infection, (H, W) in [0, 1], of a CT slice (H, W) in [0, 255]; None without a network."""
        network = self.final.get("ct_slice")
        return None if network is None else network.of_picture(grey)

    def predict_slice(self, grey: NDArray[np.uint8]) -> Mask | None:
        """The infection of a CT slice, (H, W); None without a network for slices."""
        found = self.probability_slice(grey)
        return None if found is None else found > self.final["ct_slice"].threshold

    def probability_volume(
        self, hu: NDArray[np.int16], spacing_mm: tuple[float, float, float], lung: Mask
    ) -> Probability | None:
        """Probability of infection, (D, H, W) in [0, 1]; 0 outside the lungs' boxes; None without a network.

        Args:
            hu: (D, H, W) in Hounsfield units.
            spacing_mm: (z, y, x).
            lung: (D, H, W).
        """
        network = self.final.get("ct_volume")
        return None if network is None else network.of_volume(hu, spacing_mm, lung)

    def predict_volume(self, hu: NDArray[np.int16], spacing_mm: tuple[float, float, float], lung: Mask) -> Mask | None:
        """The infection of a volume, (D, H, W); None without a network for volumes."""
        found = self.probability_volume(hu, spacing_mm, lung)
        return None if found is None else found > self.final["ct_volume"].threshold


def save(segmenter: InfectionSegmenter, folder: Path) -> None:
    """Write the networks into ``folder``; the same weights give the same bytes."""
    about: dict[str, Any] = {}
    for modality, network in segmenter.final.items():
        parts = segmenter.halves.get(modality, [])
        _write(network, folder / f"{modality}.safetensors")
        for number, part in enumerate(parts):
            _write(part, folder / f"{modality}-{number}.safetensors")
        kind = "unet3d" if isinstance(network.model, VolumeNetwork) else "inf_net"
        about[modality] = {
            "kind": kind,
            "shape": asdict(network.model.shape),
            "threshold": network.threshold,
            "window": network.window,
            "halves": len(parts),
        }
    write_json(folder / FILE, about)
    write_json(folder / HALVES, segmenter.half_of)


def load(folder: Path, *, halves: bool = True) -> InfectionSegmenter:
    """Read what :func:`save` wrote.

    Args:
        folder: the stage's, or a served model's copy of it.
        halves: False reads the networks for new files alone.

    Raises:
        TrainingError: a file is missing, damaged, or another network's.
    """
    try:
        about = read_json(folder / FILE)
        found = InfectionSegmenter()
        for modality, entry in about.items():
            found.final[modality] = _read(entry, folder / f"{modality}.safetensors")
            if halves and entry["halves"]:
                names = [f"{modality}-{number}.safetensors" for number in range(entry["halves"])]
                found.halves[modality] = [_read(entry, folder / name) for name in names]
                found.half_of[modality] = read_json(folder / HALVES)[modality]
        return found
    except (ChestflowError, KeyError, TypeError, ValueError, RuntimeError, OSError):
        raise TrainingError(
            "the infection segmenter's files are missing or damaged: run the stage `infection` again"
        ) from None


def files(folder: Path, modality: str) -> list[Path]:
    """What a served model needs of the folder to segment new files of a modality; empty where it has no network."""
    if not (folder / FILE).exists() or modality not in read_json(folder / FILE):
        return []
    return [folder / FILE, folder / f"{modality}.safetensors"]


def _write(network: Segmenter, path: Path) -> None:
    from safetensors.torch import save as to_bytes

    weights = {name: value.contiguous() for name, value in network.model.network.state_dict().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(to_bytes(weights))


def _read(entry: dict[str, Any], path: Path) -> Segmenter:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry["shape"].items()
    }
    model: SliceNetwork | VolumeNetwork
    if entry["kind"] == "unet3d":
        model = volume_network.build(VolumeShape(**values))
    else:
        model = slice_network.build(Shape(**values))
    try:
        weights: dict[str, torch.Tensor] = from_bytes(path.read_bytes())
    except SafetensorError:
        raise ValueError("not a safetensors file") from None
    model.network.load_state_dict(weights)
    model.network.eval()
    return Segmenter(model, entry["threshold"], tuple(entry["window"]) if entry["window"] else None)
