"""Speed and memory of each X-ray method: a training step, inference, peak memory, and how long steps wait for data.

    python benchmarks/training_step.py                    # every method at its paper's batch and size: for a GPU
    python benchmarks/training_step.py --small            # batch 8, 96 pixels, narrow backbones: for a CPU
    python benchmarks/training_step.py --methods covidnet mag_sd --steps 10

Steps are the engine's own (``chestflow.training.steps.Stepper`` over ``loader.Reader``), so augmentation, mixed
precision and gradient clipping take part as in a training; pictures are noise in a pack in memory. Each line is
measured in a fresh process: its peak memory is its own (on the CPU, growth of the resident size over what it was before
the network was built). The first phase of a method is timed unless ``--phase`` names another.

Variants: float32 with the plain memory layout (the peer), float32 and bfloat16 with channels_last; a training uses
channels_last, and bfloat16 on GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

#: Pixels a side in each method's paper; others take 224.
SIDES = {"ac_covidnet": 480, "darkcovidnet": 256, "covxnet": 256}
#: What makes a network small, where its config has such a field.
SMALL: dict[str, Any] = {"backbone": "resnet18", "pool_first": 2}
#: The same of one method alone: only CovXNet's scales are sides of images.
SMALL_OF: dict[str, dict[str, Any]] = {"covxnet": {"scales": (64, 32)}}
VARIANTS = {
    "float32": (False, False),
    "float32, channels_last": (False, True),
    "bfloat16, channels_last": (True, True),
}
COLUMNS = ("train images/s", "inference images/s", "peak MB", "waits for data")


def xray_methods() -> list[str]:
    """Every method that reads X-rays."""
    from chestflow.methods import registry

    return [name for name in registry.names() if "cxr" in registry.get(name).modalities]


def settings(method: Any, small: bool, batch: int | None) -> dict[str, Any]:
    """The config's values: the paper's, without pretrained weights, which would be downloaded; or the small ones."""
    import dataclasses

    fields = {f.name for f in dataclasses.fields(method.config)}
    values: dict[str, Any] = {"weights": None}
    if small:
        values |= SMALL | SMALL_OF.get(method.name, {})
    if batch or small:
        values["batch_size"] = batch or 8
    return {k: v for k, v in values.items() if k in fields}


def resident() -> float:
    """Peak resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time one method in one variant in this process."""
    import torch

    from chestflow.data.packs import Pack
    from chestflow.errors import ConfigError
    from chestflow.methods import registry
    from chestflow.training.distributed import World
    from chestflow.training.hardware import choose_device, make_reproducible
    from chestflow.training.inference import infer
    from chestflow.training.loader import Reader
    from chestflow.training.phases import Batch, apply_freezing
    from chestflow.training.steps import Course, Stepper

    class TimedReader(Reader):
        """Knows how long the steps waited for their batches."""

        waited = 0.0

        def batches(self, order: Iterable[Sequence[int]]) -> Iterator[Batch]:
            stream = super().batches(order)
            while True:
                start = time.perf_counter()
                batch = next(stream, None)
                self.waited += time.perf_counter() - start
                if batch is None:
                    return
                yield batch

    make_reproducible(options.threads)
    device = choose_device(options.device)
    amp, channels_last = VARIANTS[options.variant]
    method = registry.get(options.method)
    side = options.side or (96 if options.small else SIDES.get(options.method, 224))
    try:
        config = registry.configure(method, settings(method, options.small, options.batch))
        classes = ("normal", "pneumonia", "covid19")
        network = method.build(config, registry.InputSpec("cxr", (side, side), classes))
        phases = method.phases(config)
    except ConfigError as error:
        return {"refused": str(error)}
    phase = next((p for p in phases if p.name == options.phase), phases[0])
    rng = np.random.default_rng(0)
    count = phase.batch_size * (options.steps + 1)
    data = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
    index = pd.DataFrame({"row": range(count), "image_id": range(count), "has_lung": False, "has_infection": False})
    pack = Pack(data, np.zeros((count, 1, 1), np.uint8), index, {"modality": "cxr"})
    table = pd.DataFrame({"row": range(count), "target": np.arange(count) % 3, "ratio": np.nan})

    before = resident()
    network.to(device)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    reader = TimedReader(pack, table, device)
    if phase.prepare is not None:
        phase.prepare(network, reader.batches([list(range(phase.batch_size))] * 8))
    parameters = apply_freezing(network, phase)
    stepper = Stepper(phase, network, parameters, phase.optimiser(parameters), reader, device, amp, World(), 0)
    order = list(phase.sampler(table, phase.batch_size, torch.Generator().manual_seed(0)))[: options.steps + 1]
    course, seen, start = Course(), 0, 0.0
    for step, samples in enumerate(stepper.epoch(course, order)):  # each step ends with a wait for its loss
        if step == 0:
            start, reader.waited = time.perf_counter(), 0.0
        else:
            seen += samples
    seconds, waited = time.perf_counter() - start, reader.waited
    rows = np.arange(min(count, phase.batch_size * options.steps))
    infer(network, pack, rows[: phase.batch_size], device=device, batch_size=phase.batch_size, amp=amp)
    start = time.perf_counter()
    infer(network, pack, rows, device=device, batch_size=phase.batch_size, amp=amp)
    inference = len(rows) / (time.perf_counter() - start)
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident() - before
    return {
        "side": side, "batch": phase.batch_size, "phase": phase.name, "train images/s": seen / seconds,
        "inference images/s": inference, "peak MB": peak, "waits for data": waited / seconds,
    }  # fmt: skip


def in_process(method: str, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one line in a fresh process; a failure becomes its last line of words."""
    command = [sys.executable, __file__, "--method", method, "--variant", variant]
    for name in ("device", "threads", "steps", "side", "batch", "phase"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command + ["--small"] * options.small, capture_output=True, text=True)
    if done.returncode != 0:
        return {"refused": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def report(options: argparse.Namespace) -> None:
    """Measure every method and variant and print a table."""
    load = os.getloadavg()[0]
    print(
        f"device {options.device}, {options.threads} CPU threads, {options.steps} steps, load average before {load:.1f}"
    )
    print(
        f"{'method':16s} {'phase':10s} {'pixels':>6s} {'batch':>5s}  {'variant':24s}"
        + "".join(f"{c:>20s}" for c in COLUMNS)
    )
    for method in options.methods or xray_methods():
        for variant in VARIANTS:
            found = in_process(method, variant, options)
            if "refused" in found:
                print(f"{method:16s} not measured: {found['refused']}", flush=True)
                break
            head = f"{method:16s} {found['phase']:10s} {found['side']:6d} {found['batch']:5d}  {variant:24s}"
            print(
                f"{head}{found['train images/s']:20.1f}{found['inference images/s']:20.1f}{found['peak MB']:20.0f}"
                f"{found['waits for data']:20.1%}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Speed and memory of each X-ray method.")
    parser.add_argument("--methods", nargs="+", help="the methods to measure; all that read X-rays otherwise")
    parser.add_argument("--small", action="store_true", help="96 pixels, batch 8, narrow backbones")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=4, help="timed steps after one that is not")
    parser.add_argument("--side", type=int, help="pixels a side instead of the paper's")
    parser.add_argument("--batch", type=int, help="samples a step instead of the paper's")
    parser.add_argument("--phase", help="a phase's name; the first one otherwise")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.method:
        print(json.dumps(measure(chosen)))
    else:
        report(chosen)
