"""The full-size path of paper 004: one scan of 512 x 512 x 300 voxels, the full-width network at 1 x 138 x 256 x 256.

    python benchmarks/full_size_ct.py                          # everything this machine can do
    python benchmarks/full_size_ct.py --parts inference        # the network alone; --parts train needs a CUDA GPU
    python benchmarks/full_size_ct.py --scan 40 64 64 --size 32 48 48 --width 4 --depth 10 --batch 2   # a quick look

Parts, each in a process of its own, because a process never gives its peak back:

- ``file``: a synthetic DICOM series is read, its lungs are found, both are resampled to the network's size, and the
  network answers: file-to-answer seconds, by step. Writing the series is not timed.
- ``inference``: the network alone on a volume in memory, in float32 and bfloat16 (on the CPU, and on the GPU if any).
- ``train``: on a CUDA GPU, an optimiser step at the paper's batch of 20 by micro-batches, in bfloat16, without and
  with activation checkpointing, and one in float32: seconds, and the most memory that torch held.

The paper states 4.6 s a scan on a TITAN RTX, where what is timed is not said. 1.48 GiB is what the network's
activations take for one sample in float32 (derived, 1483 MiB with the attention branch), not a figure that it prints.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PAPER = {"seconds_a_scan": 4.6, "activations_gib_a_sample": 1.48, "where": "TITAN RTX"}
PARTS = ("file", "inference", "train")
SPACING_MM = (1.0, 0.7, 0.7)


def resident_gib() -> float:
    """Peak resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_series(folder: Path, shape: tuple[int, int, int]) -> None:
    """A drawn thorax as a DICOM series: two air-filled lungs with a lesion in a body, and noise."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    rng = np.random.default_rng(0)
    depth, height, width = shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    body = (x / 0.95) ** 2 + (y / 0.75) ** 2 < 1
    for place, z in enumerate(np.linspace(-1, 1, depth)):
        hu = np.where(body, 40.0, -1000.0)
        for side in (-0.42, 0.42):
            lung = ((x - side) / 0.33) ** 2 + (y / 0.5) ** 2 + (z / 0.95) ** 2 < 1
            hu[lung] = -850
            hu[lung & (y > 0.3)] = -500
        stored = np.clip(hu + rng.normal(0, 20, hu.shape) + 1024, 0, 4095).astype(np.uint16)
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = f"2.25.{place + 1}"
        path = folder / f"{place:04d}.dcm"
        slice_ = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.Modality, slice_.SeriesInstanceUID, slice_.StudyInstanceUID = "CT", "2.25.1000", "2.25.1001"
        slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = height, width, 1
        slice_.PhotometricInterpretation, slice_.PixelRepresentation = "MONOCHROME2", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.PixelSpacing = [SPACING_MM[1], SPACING_MM[2]]
        slice_.ImagePositionPatient = [0.0, 0.0, SPACING_MM[0] * place]
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.InstanceNumber = place + 1
        slice_.PixelData = stored.tobytes()
        slice_.save_as(path, enforce_file_format=True)


def network(options: argparse.Namespace, checkpointing: bool = False) -> Any:
    """The network of paper 004 at the asked width and depth; untrained weights take as long as trained ones."""
    import torch

    from chestflow.methods.dual_sampling import DualSamplingConfig, DualSamplingNetwork

    torch.manual_seed(0)
    return DualSamplingNetwork(DualSamplingConfig(options.depth, options.width, checkpointing=checkpointing))


def answer(model: Any, image: Any, lung: Any, bf16: bool) -> float:
    """Seconds of one forward pass of a volume that lies on the model's device, its logit fetched."""
    import torch

    started = time.perf_counter()
    with torch.inference_mode(), torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
        logit = float(model(image, lung).logits[0, 0])
    if not np.isfinite(logit):
        raise RuntimeError(f"the network answered {logit}")
    return time.perf_counter() - started


def measure_file(options: argparse.Namespace) -> list[dict[str, Any]]:
    """From a series in a folder to an answer, by step."""
    import torch

    from chestflow.data.recipes import apply
    from chestflow.imaging.read import read_volume
    from chestflow.segmentation.lungs import segment_ct

    recipe = {
        "modality": "ct_volume", "size": options.size, "spacing_mm": [1.25, 0.7168, 0.7168], "max_downscale": 0.5,
    }  # fmt: skip
    model = network(options).eval().to(options.device)
    with tempfile.TemporaryDirectory() as folder:
        write_series(Path(folder), tuple(options.scan))
        moments = [time.perf_counter()]
        volume = read_volume(Path(folder))
        moments.append(time.perf_counter())
        lungs = segment_ct(volume.hu, volume.spacing_mm)
        moments.append(time.perf_counter())
        packed, masks, _ = apply(volume, lungs.astype(np.uint8), recipe)
        moments.append(time.perf_counter())
    assert masks is not None
    image, lung = (torch.as_tensor(a[None, None]).float().to(options.device) for a in (packed, masks))
    moments.append(time.perf_counter())
    answer(model, image, lung, bf16=options.device == "cuda")
    moments.append(time.perf_counter())
    names = ("read", "find lungs", "resample", "to device", "network")
    rows = [{"step": n, "seconds": b - a} for n, a, b in zip(names, moments, moments[1:], strict=False)]
    rows.append({"step": "preprocessing", "seconds": moments[3] - moments[0]})
    rows.append({"step": "file to answer", "seconds": moments[-1] - moments[0], "peak_gib": resident_gib()})
    return rows


def measure_inference(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The network alone, in one precision and on one device: the first pass and the median of those after it."""
    import torch

    model = network(options).eval().to(options.device)
    image = (torch.randn(1, 1, *options.size) * 300 - 600).to(options.device)
    lung = torch.ones_like(image)
    before = resident_gib()
    first = answer(model, image, lung, options.bf16)
    rest = sorted(answer(model, image, lung, options.bf16) for _ in range(options.steps))
    row = {"precision": "bfloat16" if options.bf16 else "float32", "device": options.device, "first": first}
    row |= {"seconds": rest[len(rest) // 2] if rest else first}
    if options.device == "cuda":
        return [{**row, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}]
    return [{**row, "peak_gib": resident_gib(), "grown_gib": resident_gib() - before}]


def measure_train(options: argparse.Namespace) -> list[dict[str, Any]]:
    """An optimiser step at the paper's batch by micro-batches, with the attention loss, on a CUDA GPU."""
    import torch
    import torch.nn.functional as F

    from chestflow.losses.attention import attention_loss

    model = network(options, options.checkpointing).train().to(options.device)
    optimiser = torch.optim.Adam(model.parameters(), 2e-4)
    micro = options.micro
    image = (torch.randn(micro, 1, *options.size) * 300 - 600).to(options.device)
    infection = (torch.rand(micro, 1, *options.size, device=options.device) < 0.05).float()
    target, take = torch.ones(micro, device=options.device), torch.ones(micro, dtype=torch.bool, device=options.device)
    lung = torch.ones_like(image)

    def step() -> float:
        started = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        for _ in range(options.batch // micro):
            with torch.autocast(image.device.type, torch.bfloat16, enabled=options.bf16):
                output = model(image, lung)
            classified = F.binary_cross_entropy_with_logits(output.logits[:, 0].float(), target)
            loss = classified + 0.5 * attention_loss(output.attention, infection, take)[0]
            (loss * micro / options.batch).backward()
        optimiser.step()
        if not bool(torch.isfinite(loss)):
            raise RuntimeError("the loss is not finite")
        if image.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    step()
    seconds = sorted(step() for _ in range(options.steps))
    row = {
        "precision": "bfloat16" if options.bf16 else "float32", "checkpointing": options.checkpointing,
        "batch": options.batch, "micro_batch": micro, "seconds": seconds[len(seconds) // 2],
    }  # fmt: skip
    if image.is_cuda:
        return [{**row, "peak_gib": torch.cuda.max_memory_allocated() / 2**30, "device": torch.cuda.get_device_name()}]
    return [{**row, "peak_gib": resident_gib(), "device": "cpu"}]


MEASURES = {"file": measure_file, "inference": measure_inference, "train": measure_train}


def variants(part: str, cuda: bool, options: argparse.Namespace) -> list[list[str]]:
    """The extra arguments of each measurement of a part."""
    devices = ["cpu", *(["cuda"] if cuda else [])]
    if part == "file":
        return [["--device", device] for device in devices]
    if part == "inference":
        return [["--device", device, *bf16] for device in devices for bf16 in ([], ["--bf16"])]
    if not cuda and not options.train_on_cpu:
        return []
    device = ["--device", "cuda" if cuda else "cpu"]
    if not cuda:
        return [device, [*device, "--checkpointing"]]
    # bfloat16 3D gradients are wrong on some CPUs, so they are measured on a GPU alone
    return [[*device, "--bf16"], [*device, "--bf16", "--checkpointing"], [*device, "--checkpointing"], device]


def show(part: str, rows: list[dict[str, Any]]) -> None:
    """Print a part's rows under their own headings."""
    if not rows:
        print(f"\n{part}: not measured, no CUDA GPU here (--train-on-cpu measures it on the CPU in float32)")
        return
    heads = list(dict.fromkeys(key for row in rows for key in row))
    print(f"\n{part}")
    print("  ".join(f"{head:>14}" for head in heads))
    for row in rows:
        cells = [row.get(head, "") for head in heads]
        print("  ".join(f"{c:>14.3f}" if isinstance(c, float) else f"{c!s:>14}" for c in cells))


def parsed() -> argparse.Namespace:
    """The command's options; the defaults are the paper's sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--scan", type=int, nargs=3, default=[300, 512, 512], metavar=("D", "H", "W"))
    parser.add_argument("--size", type=int, nargs=3, default=[138, 256, 256], metavar=("D", "H", "W"))
    parser.add_argument("--depth", type=int, default=34)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=20, help="of an optimiser step")
    parser.add_argument("--micro", type=int, default=1, help="volumes that are on the device at once")
    parser.add_argument("--steps", type=int, default=3, help="timed ones, after a first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train-on-cpu", action="store_true")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    for hidden in ("--bf16", "--checkpointing"):
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch % options.micro:
        parser.error(f"--batch {options.batch} is no multiple of --micro {options.micro}")
    return options


def main() -> None:
    """Measure each variant in a process of its own and print a table a part."""
    import torch

    options = parsed()
    torch.set_num_threads(options.threads)
    if options.only:
        print(json.dumps(MEASURES[options.only](options)))
        return
    found: dict[str, Any] = {"paper": PAPER, "threads": options.threads, "network": [options.depth, options.width]}
    print(
        f"paper: {PAPER['seconds_a_scan']} s a scan on a {PAPER['where']}; {PAPER['activations_gib_a_sample']} GiB of"
    )
    print(f"activations a sample in float32. Here: ResNet-{options.depth}, width {options.width}, {options.size}")
    for part in options.parts:
        rows: list[dict[str, Any]] = []
        for extra in variants(part, torch.cuda.is_available(), options):
            command = [sys.executable, *sys.argv, "--only", part, *extra]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                rows.append({"failed": f"{' '.join(extra)}: {last}"})
            else:
                device = {"device": extra[1]} if part == "file" else {}
                rows += [{**device, **row} for row in json.loads(done.stdout.splitlines()[-1])]
        show(part, rows)
        found[part] = rows
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
