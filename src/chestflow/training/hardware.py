"""The device, and what must be pinned so that one seed gives the same weights twice."""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager, nullcontext

import torch

from chestflow.errors import ConfigError


def seed_of(*place: int | str) -> int:
    """A seed for one place in a training; neighbours have nothing in common."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, place)).encode()).digest()[:7])


def choose_device(wanted: str) -> torch.device:
    """The device; ``auto`` is a CUDA GPU where there is one, else the CPU.

    Raises:
        ConfigError: it is not there.
    """
    kind = "cuda" if wanted == "auto" and torch.cuda.is_available() else "cpu" if wanted == "auto" else wanted
    if kind.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"engine.device is {wanted}, but torch finds no CUDA GPU: set it to auto or cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("engine.device is mps, but torch finds no Apple GPU: set it to auto or cpu")
    if kind == "cuda":
        kind = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if kind.startswith("cuda"):
        torch.cuda.set_device(torch.device(kind))
    return torch.device(kind)


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for bfloat16: CUDA GPUs, and CPUs with AVX512-BF16 or AMX. Others emulate it."""
    if device.type == "cpu":  # torch tells of its CPU's units by these two names alone
        asked = (getattr(torch.cpu, f"_is_{unit}_supported", None) for unit in ("avx512_bf16", "amx_tile"))
        return any(supported is not None and supported() for supported in asked)
    return device.type == "cuda"


def mixed(device: torch.device, amp: str, *, volumes: bool) -> bool:
    """Whether networks compute in bfloat16 where that is enough, as ``engine.amp`` asks.

    ``auto`` does on CUDA GPUs alone; ``native`` on CPUs with units for it too, for pictures.

    Raises:
        ConfigError: volumes in bfloat16 on a CPU, where weight gradients of 3D convolutions can be wrong.
    """
    if amp == "bf16" and device.type == "cpu" and volumes:
        raise ConfigError(
            "engine.amp is bf16 on the CPU, where the gradients of networks for volumes can be wrong: set engine.amp to"
            " off or auto"
        )
    if amp == "native":
        return computes_in_bfloat16(device) and not (volumes and device.type == "cpu")
    return amp == "bf16" or (amp == "auto" and device.type == "cuda")


def make_reproducible(threads: int) -> None:
    """Pin what changes sums: CPU threads, and algorithms that race or are picked by timing.

    A few CUDA kernels (backward of trilinear interpolation) have no deterministic form; they warn and run.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[None]:
    """bfloat16 mixed precision, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()
