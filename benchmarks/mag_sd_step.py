"""A training step of MAG-SD with its three augmented views in one forward (joint) or one by one (separate).

Time, what autograd keeps for the backward pass and the process's peak, of cross entropy on raw images alone (0AUG) and
of both ways. Each measurement runs in a process of its own, because a process never gives its peak back:

    python benchmarks/mag_sd_step.py --backbone resnet50 --size 224 --batch 4 --threads 2
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

WAYS = ("0AUG", "separate", "joint")


def measure(way: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Median and least seconds, least CPU seconds a step, MiB kept for the backward pass, growth or GPU peak in MiB."""
    import torch

    from chestflow.methods.mag_sd import METHOD
    from chestflow.methods.registry import InputSpec
    from chestflow.training.phases import Batch, apply_freezing

    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    device = torch.device(asked.device)
    options = {"augmentations": "none"} if way == "0AUG" else {"forward": way}
    config = METHOD.config(backbone=asked.backbone, **options)
    spec = InputSpec("cxr", (asked.size, asked.size), ("normal", "pneumonia", "covid19"))
    network = METHOD.build(config, spec).to(device).to(memory_format=torch.channels_last)
    phase = METHOD.phases(config)[0]
    optimiser = phase.optimiser(apply_freezing(network, phase))
    image = torch.rand(asked.batch, 1, asked.size, asked.size, device=device) * 255
    target = torch.arange(asked.batch, device=device) % 3
    missing = torch.zeros(asked.batch, device=device)
    batch = Batch(image, target, None, None, missing.bool(), missing, target)
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    generator = torch.Generator().manual_seed(0)
    seconds, busy = [], []
    for index in range(asked.steps + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started, worked = time.perf_counter(), time.process_time()
        with torch.autocast(device.type, torch.bfloat16, enabled=asked.bf16):
            if index == 0:
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    loss = phase.loss(network, batch, generator)["loss"]
            else:
                loss = phase.loss(network, batch, generator)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
    ordered = sorted(seconds[1:])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else grown
    middle = ordered[len(ordered) // 2]
    kept = sum(held.values()) / 2**20
    return {"seconds": middle, "least": ordered[0], "cpu": min(busy[1:]), "kept": kept, "peak": peak}


def main() -> None:
    """Print one row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 mixed precision")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(measure(asked.only, asked)))
        return
    print(f"{asked.backbone}, {asked.size} pixels, batch {asked.batch}, {asked.device}, {asked.threads} CPU threads")
    print(f"{'views':>8} {'s/step':>7} {'least':>7} {'CPU s':>7} {'kept MiB':>9} {'peak MiB':>9}")
    for way in WAYS:
        done = subprocess.run([sys.executable, *sys.argv, "--only", way], check=True, capture_output=True, text=True)
        row = json.loads(done.stdout)
        speed = f"{row['seconds']:7.3f} {row['least']:7.3f} {row['cpu']:7.2f}"
        print(f"{way:>8} {speed} {row['kept']:9.0f} {row['peak']:9.0f}")


if __name__ == "__main__":
    main()
