"""The data path of an epoch: collated float32 batches from a pack, beside decoding the files again.

    python benchmarks/data_path.py                    # about a minute
    python benchmarks/data_path.py --images 400       # quicker

Distinct 1024 x 1024 PNG files stay in the page cache, so that the disk plays no part. Measured in turns in one run, the
median of the rounds counts:

- decode: a DataLoader of two workers reads, resizes to 224 x 224 and collates float32, once over all files
- memory map: rows of the pack's array copied in a random order, no batches made
- batches: ``chestflow.training.loader.Reader``, shuffled, collated, float32: what a training step receives
- augmented: the same and COVIDNet's augmentation on each batch, on the same cores

Then how long a real training step waits for its batch, by ``training_step.py`` with COVIDNet on ResNet-18.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from chestflow.data.packs import Pack
from chestflow.methods import registry
from chestflow.training.loader import Reader

SIDE, BATCH, DISTINCT, WORKERS = 224, 48, 100, 2
GOAL = 50


def draw(folder: Path, count: int) -> list[Path]:
    """Smooth shadows with film noise: PNG sizes, and so decoding times, near those of real 8-bit X-rays."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(min(DISTINCT, count)):
        coarse = rng.uniform(30, 220, (9, 9)).astype(np.float32)
        picture = cv2.resize(coarse, (1024, 1024), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 3, (1024, 1024))
        files.append(folder / f"{number}.png")
        cv2.imwrite(str(files[-1]), np.clip(picture, 0, 255).astype(np.uint8))
    return [files[i % len(files)] for i in range(count)]


class Files(torch.utils.data.Dataset):
    """What a notebook does: each image is read and resized when it is asked for."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        cv2.setNumThreads(1)
        picture = cv2.imread(str(self.files[index]), cv2.IMREAD_GRAYSCALE)
        small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(small)[None].float()


def write_pack(folder: Path, count: int, masked: bool = False) -> Pack:
    """A pack of ``count`` images on disk, opened as a memory map; with lung masks beside them if asked for."""
    folder.mkdir()
    array = np.lib.format.open_memmap(folder / "data.npy", "w+", np.uint8, (count, SIDE, SIDE))
    rng = np.random.default_rng(1)
    for row in range(count):
        array[row] = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    array.flush()
    index = pd.DataFrame({"row": range(count), "image_id": range(count), "has_lung": masked, "has_infection": False})
    masks = np.zeros((count, 1, 1), np.uint8)
    if masked:
        np.lib.format.open_memmap(folder / "masks.npy", "w+", np.uint8, array.shape)[:] = 1
        masks = np.load(folder / "masks.npy", mmap_mode="r")
    return Pack(np.load(folder / "data.npy", mmap_mode="r"), masks, index, {"modality": "cxr"})


def decode(files: list[Path]) -> float:
    """Images a second of one epoch over the files, the workers' start not counted."""
    # spawned, because a fork would inherit the locks of OpenCV's and torch's threads
    how = {"num_workers": WORKERS, "persistent_workers": True, "multiprocessing_context": "spawn", "timeout": 60}
    loader = torch.utils.data.DataLoader(Files(files), BATCH, shuffle=True, **how)  # type: ignore[arg-type]
    next(iter(loader))
    start = time.perf_counter()
    seen = sum(len(batch) for batch in loader)
    return seen / (time.perf_counter() - start)


def memory_map(pack: Pack, epochs: int) -> float:
    """Images a second of copying rows."""
    rng = np.random.default_rng(2)
    start = time.perf_counter()
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(pack)), max(1, len(pack) // BATCH)):
            pack.gather(rows)
    return epochs * len(pack) / (time.perf_counter() - start)


def batches(pack: Pack, epochs: int, augmented: bool) -> float:
    """Images a second of the training's own reader."""
    table = pd.DataFrame({"row": range(len(pack)), "target": np.arange(len(pack)) % 2, "ratio": np.nan})
    method = registry.get("covidnet")
    phase = method.phases(method.config())[0]
    reader, generator = Reader(pack, table, torch.device("cpu")), torch.Generator().manual_seed(0)
    start, seen = time.perf_counter(), 0
    for _ in range(epochs):
        order = [chunk.tolist() for chunk in torch.randperm(len(pack), generator=generator).split(BATCH)]
        for batch in reader.batches(order):
            assert batch.image.dtype == torch.float32
            if augmented:
                assert phase.augment is not None
                batch = phase.augment(batch, generator)
            seen += len(batch.image)
    return seen / (time.perf_counter() - start)


def wait_share(threads: int) -> dict[str, float]:
    """COVIDNet's real step, from the other script."""
    script = Path(__file__).with_name("training_step.py")
    command = [sys.executable, str(script), "--method", "covidnet", "--variant", "float32, channels_last"]
    command += ["--device", "cpu", "--threads", str(threads), "--batch", "16", "--steps", "3"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def report(options: argparse.Namespace) -> None:
    """Measure everything and print it."""
    torch.set_num_threads(options.threads)
    print(f"{options.images} images, {options.threads} CPU threads, load average before {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        files, pack = draw(Path(name), options.images), write_pack(Path(name) / "pack", options.images)
        masked = write_pack(Path(name) / "masked", options.images, masked=True)
        epochs = max(1, 4000 // options.images)
        kinds = {
            "decode": lambda: decode(files),
            "memory map": lambda: memory_map(pack, epochs),
            "batches": lambda: batches(pack, epochs, augmented=False),
            "with masks": lambda: batches(masked, epochs, augmented=False),
            "augmented": lambda: batches(pack, epochs, augmented=True),
        }
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(options.rounds):
            for kind, run in kinds.items():
                found[kind].append(run())
        rate = {kind: statistics.median(rates) for kind, rates in found.items()}
        for kind, rates in found.items():
            print(f"  {kind:11s} {rate[kind]:9.0f} images/s ({min(rates):.0f} to {max(rates):.0f})")
        print(f"  batches over decode    {rate['batches'] / rate['decode']:6.1f} x  (goal: at least {GOAL})")
        print(f"  with masks over decode {rate['with masks'] / rate['decode']:6.1f} x")
        print(f"  augmented over decode  {rate['augmented'] / rate['decode']:6.1f} x")
    if not options.no_step:
        step = wait_share(options.threads)
        print(
            f"  COVIDNet, {step['side']} pixels, batch {step['batch']}: {step['train images/s']:.1f} images/s,"
            f" {step['waits for data']:.2%} of the time waiting for data"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Collated batches from a pack beside decoding files.")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-step", action="store_true", help="leave the training step out")
    report(parser.parse_args())
