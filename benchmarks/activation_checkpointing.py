"""Memory and time of a training step of the dual-sampling network, with and without activation checkpointing.

Each measurement runs in a process of its own, because a process never gives its peak back:

    python benchmarks/activation_checkpointing.py --size 64 128 128 --batch 1 --steps 3
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any


def measure(checkpointing: bool, size: list[int], batch: int, width: int, steps: int, threads: int) -> dict[str, Any]:
    """Median seconds a step, megabytes that autograd keeps, and how far the process grew over a start-up."""
    import torch

    from chestflow.losses.attention import attention_loss
    from chestflow.methods.dual_sampling import DualSamplingConfig, DualSamplingNetwork

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = DualSamplingNetwork(DualSamplingConfig(width=width, checkpointing=checkpointing))
    optimiser = torch.optim.Adam(network.parameters(), 2e-4)
    image = torch.randn(batch, 1, *size) * 300 - 600
    infection = (torch.rand(batch, 1, *size) < 0.05).float()
    take = torch.ones(batch, dtype=torch.bool)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(image)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        output = network(image)
        loss = output.logits.square().mean() + 0.5 * attention_loss(output.attention, infection, take)[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seconds.append(time.perf_counter() - started)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    step = sorted(seconds)[len(seconds) // 2]
    return {"seconds": step, "kept_mib": sum(held.values()) / 2**20, "peak_mib": grown, "loss": float(loss.detach())}


def main() -> None:
    """Print one row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[64, 128, 128], metavar=("D", "H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("on", "off"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        result = measure(asked.only == "on", asked.size, asked.batch, asked.width, asked.steps, asked.threads)
        print(json.dumps(result))
        return
    print(f"{'checkpointing':>13} {'s/step':>7} {'kept MiB':>9} {'peak MiB':>9} {'last loss':>10}")
    for only in ("off", "on"):
        done = subprocess.run([sys.executable, *sys.argv, "--only", only], check=True, capture_output=True, text=True)
        row = json.loads(done.stdout)
        numbers = f"{row['seconds']:7.2f} {row['kept_mib']:9.0f} {row['peak_mib']:9.0f} {row['loss']:10.6f}"
        print(f"{only:>13} {numbers}")


if __name__ == "__main__":
    main()
