"""Attention-guided mix-up, dimming and patching: the whole batch at once beside one image after the other.

Both make the same pictures from the same draws, which is checked before the clock starts. The loop is the way the
method is usually written: read each box back as numbers, slice, interpolate. Where a CUDA GPU is there it is measured
too, with the network's input and maps already on it.

    python benchmarks/attention_augmentation.py --batch 32 --size 224 --threads 2
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from chestflow.training.attention_augmentation import (
    KINDS,
    AugmentationSettings,
    attention_augment,
    choose_maps,
    draw_uniforms,
)

SETTINGS = AugmentationSettings()


def one_by_one(image: Tensor, maps: Tensor, uniforms: Tensor, kinds: tuple[str, ...]) -> list[Tensor]:
    """The same augmentations in a loop over images, every box as Python numbers."""
    chosen = choose_maps(maps, uniforms[:, :3])
    height, width = image.shape[2:]
    views = []
    for kind in kinds:
        slot, made = KINDS.index(kind), []
        for i in range(len(image)):
            one = maps[i, int(chosen[i, slot])]
            low, high = SETTINGS.theta_dim if kind == "dimming" else SETTINGS.theta_box
            theta = low + (high - low) * float(uniforms[i, 3 + slot])
            large = F.interpolate(one[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
            region = large >= theta * float(one.max())
            if kind == "dimming":
                made.append(torch.where(region, image[i] * SETTINGS.dim_value, image[i]))
                continue
            ys, xs = torch.nonzero(region, as_tuple=True)
            grow_y, grow_x = round(SETTINGS.pad * height), round(SETTINGS.pad * width)
            top, bottom = max(int(ys.min()) - grow_y, 0), min(int(ys.max()) + 1 + grow_y, height)
            left, right = max(int(xs.min()) - grow_x, 0), min(int(xs.max()) + 1 + grow_x, width)
            crop = image[i, :, top:bottom, left:right]
            if kind == "mix_up":
                whole = F.interpolate(crop[None], (height, width), mode="bilinear", align_corners=False)[0]
                made.append(SETTINGS.gamma * image[i] + (1 - SETTINGS.gamma) * whole)
                continue
            y = int((height - crop.shape[1] + 1) * float(uniforms[i, 6]))
            x = int((width - crop.shape[2] + 1) * float(uniforms[i, 7]))
            copy = image[i].clone()
            copy[:, y : y + crop.shape[1], x : x + crop.shape[2]] = crop
            made.append(copy)
        views.append(torch.stack(made))
    return views


def milliseconds(run: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Median time of a call, the device's queue emptied before and after."""
    taken = []
    for _ in range(rounds + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(1000 * (time.perf_counter() - started))
    return sorted(taken[2:])[rounds // 2]  # the first two warm up


def measure(batch: int, size: int, rounds: int, device: torch.device) -> None:
    """Print one row for each augmentation and one for the three together."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, 1, size // 8, size // 8, generator=generator)
    image = F.interpolate(coarse, (size, size), mode="bilinear").to(device)
    maps = torch.rand(batch, 32, max(1, size // 32), max(1, size // 32), generator=generator).to(device)
    uniforms = draw_uniforms(batch, generator, device)
    for ours, plain in zip(
        attention_augment(image, maps, uniforms, KINDS), one_by_one(image, maps, uniforms, KINDS), strict=True
    ):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
    for kinds in (*((kind,) for kind in KINDS), KINDS):
        draws = random.Random(0)

        def batched(kinds: tuple[str, ...] = kinds, draws: random.Random = draws) -> list[Tensor]:
            fresh = torch.Generator().manual_seed(draws.getrandbits(32))
            return attention_augment(image, maps, draw_uniforms(batch, fresh, device), kinds)

        def looped(kinds: tuple[str, ...] = kinds) -> list[Tensor]:
            return one_by_one(image, maps, uniforms, kinds)

        batched_ms, looped_ms = milliseconds(batched, rounds, device), milliseconds(looped, max(3, rounds // 4), device)
        name = kinds[0] if len(kinds) == 1 else "all three"
        print(f"{device.type:>6} {name:>10} {batched_ms:12.2f} {looped_ms:12.2f} {looped_ms / batched_ms:8.1f}")


def main() -> None:
    """Measure on the CPU, and on a GPU where there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"batch {asked.batch}, {asked.size} x {asked.size} pixels, {asked.threads} CPU threads")
    print(f"{'device':>6} {'what':>10} {'batched ms':>12} {'loop ms':>12} {'ratio':>8}")
    measure(asked.batch, asked.size, asked.rounds, torch.device("cpu"))
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
        measure(asked.batch, asked.size, asked.rounds, torch.device("cuda"))
    else:
        print("no CUDA GPU: its part is left out")


if __name__ == "__main__":
    main()
