"""Speed and memory of packing X-rays, beside a plain loop and beside bare decoding, in one run.

    python benchmarks/preprocess.py            # 100 and 1,000 images, about two minutes
    python benchmarks/preprocess.py --full     # 10,000 images as well

Distinct 1024 x 1024 PNG files are drawn once and read again and again from the page cache, so that the disk plays no
part. Four things are timed, each in a process of its own, in turns, and the median of the rounds counts:

- loop: read, resize to 224 x 224, CLAHE, z-score, one after the other on one core; what a notebook does
- decode: the same files only decoded, on all cores, through the same pool of workers
- pack: ``chestflow.data.pack_building.build``, on all cores: read, check, resize, CLAHE, write; start-up included
- memory: peak resident size of the main process and of the largest worker, for each number of images
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from chestflow.parallel import cores, ordered_map

if TYPE_CHECKING:
    import pandas as pd

RECIPE = {
    "modality": "cxr",
    "size": [224, 224],
    "clahe": {"clip": 4.0, "tiles": 4},
    "keep_aspect": False,
    "spacing_mm": None,
    "max_downscale": 0.5,
}
DISTINCT = 100
GOAL_OVER_LOOP, GOAL_OF_DECODING = 1.8, 1.6


def draw(folder: Path) -> None:
    """Smooth shadows with film noise: PNG sizes, and so decoding times, near those of real 8-bit X-rays."""
    random = np.random.default_rng(0)
    for number in range(DISTINCT):
        coarse = random.uniform(30, 220, (9, 9)).astype(np.float32)
        picture = cv2.resize(coarse, (1024, 1024), interpolation=cv2.INTER_CUBIC) + random.normal(0, 3, (1024, 1024))
        cv2.imwrite(str(folder / f"{number}.png"), np.clip(picture, 0, 255).astype(np.uint8))


def manifest_of(folder: Path, count: int) -> pd.DataFrame:
    """``count`` rows over the distinct files, and the table of masks, which are all unknown."""
    import pandas as pd

    from chestflow.data.manifest import conform

    rows = [
        {"image_id": f"bench-{i:06d}", "modality": "cxr", "path": str(folder / f"{i % DISTINCT}.png")}
        for i in range(count)
    ]
    frame = conform(pd.DataFrame(rows))
    flags = pd.DataFrame({"image_id": frame["image_id"], "has_lung": False, "has_infection": False})
    flags.to_parquet(folder / "ratio.parquet")
    return frame


def loop(paths: list[str]) -> None:
    """The plain peer, on one core."""
    cv2.setNumThreads(1)
    equalise = cv2.createCLAHE(4.0, (4, 4))
    for path in paths:
        picture = cv2.resize(cv2.imread(path, cv2.IMREAD_GRAYSCALE), (224, 224), interpolation=cv2.INTER_AREA)
        values = equalise.apply(picture).astype(np.float32)
        _ = (values - values.mean()) / values.std()


def decode(path: str) -> int:
    """Decode and forget."""
    picture = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    return 0 if picture is None else int(picture[0, 0])


def measure(kind: str, count: int, folder: Path) -> dict[str, float]:
    """Time one thing in this process. What only this process needs is imported here: workers import this file too."""
    from chestflow.data.pack_building import build

    frame = manifest_of(folder, count)
    paths = list(frame["path"])
    peaks: dict[int, float] = {}
    done = threading.Event()
    watch = threading.Thread(target=watch_workers, args=(peaks, done), daemon=True)
    watch.start()
    start = time.perf_counter()
    before = cpu_seconds()
    if kind == "loop":
        loop(paths)
    elif kind == "decode":
        for _ in ordered_map(decode, paths):
            pass
    else:
        build(frame, RECIPE, folder / "masks", folder / "pack")
    seconds = time.perf_counter() - start
    done.set()
    watch.join()
    return {
        "rate": count / seconds,
        "seconds": seconds,
        "cpu_ms": 1000 * (cpu_seconds() - before) / count,
        "main_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "worker_mb": max(peaks.values(), default=0.0),
    }


def cpu_seconds() -> float:
    """CPU time of this process and of its finished workers: it says what the work costs even on a busy machine."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def watch_workers(peaks: dict[int, float], done: threading.Event) -> None:
    """Note each worker's peak resident size from /proc; getrusage would report the parent's where it is larger."""
    while not done.wait(0.1):
        for worker in multiprocessing.active_children():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{worker.pid}/status").read_text()
                peaks[worker.pid or 0] = next(
                    (int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0
                )


def in_process(kind: str, count: int, folder: Path) -> dict[str, float]:
    """Time one thing in a fresh process, so that peak memory is its own."""
    command = [sys.executable, __file__, "--kind", kind, "--images", str(count), "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(full: bool, rounds: int, count: int) -> None:
    """Measure everything and print it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder)
        kinds = ("loop", "decode", "pack")
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind in kinds:
                found[kind].append(in_process(kind, count, folder))
        rate, cpu = (
            {kind: statistics.median(one[what] for one in found[kind]) for kind in kinds} for what in ("rate", "cpu_ms")
        )
        print(f"{count} images of 1024 x 1024, {cores()} cores, median of {rounds} rounds (lowest to highest)")
        for kind in kinds:
            rates = [one["rate"] for one in found[kind]]
            spread = f"({min(rates):.1f} to {max(rates):.1f})"
            print(f"  {kind:7s} {rate[kind]:7.1f} images/s {spread:18s} {cpu[kind]:6.2f} ms of CPU an image")
        over, of = rate["pack"] / rate["loop"], rate["decode"] / rate["pack"]
        print(f"  pack over loop    {over:.2f} x  (goal: at least {GOAL_OVER_LOOP})")
        print(f"  decode over pack  {of:.2f} x  (goal: at most {GOAL_OF_DECODING})")
        print(
            f"  by CPU time alone {cores() * cpu['loop'] / cpu['pack']:.2f} x and {cpu['pack'] / cpu['decode']:.2f} x"
        )
        print("memory and time of pack by number of images")
        for size in (100, 1000, 10_000)[: 3 if full else 2]:
            one = in_process("pack", size, folder)
            print(
                f"  {size:6d} images: {one['seconds']:6.1f} s, main {one['main_mb']:.0f} MB,"
                f" largest worker {one['worker_mb']:.0f} MB"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Speed and memory of packing X-rays.")
    parser.add_argument("--full", action="store_true", help="pack 10,000 images as well")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--kind", choices=["loop", "decode", "pack"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.kind:
        print(json.dumps(measure(chosen.kind, chosen.images, chosen.folder)))
    else:
        report(chosen.full, chosen.rounds, chosen.images)
