"""The full-size path of paper 004: one series of 512 x 512 x 300 voxels, full-width networks at 1 x 138 x 256 x 256.

    python benchmarks/full_size_ct.py --json full.json          # all parts, on the CPU and on a GPU where there is one
    python benchmarks/full_size_ct.py --part network answer --device cpu
    python benchmarks/full_size_ct.py --part step --device cuda
    python benchmarks/full_size_ct.py --slices 12 --plane 64 --size 16 32 32 --width 4 --depth 10 --batch 2 \\
        --inf-net resnet18 --inf-side 64 --inf-channel 4        # a quick look

Parts; every measurement runs in a process of its own, because a process never gives its peak back:

- ``preprocess``: a DICOM series is read, its lungs are found, both are resampled to the network's size.
- ``network``: a forward pass on a volume in memory, in float32 and bfloat16.
- ``answer``: file to answer as served, ``Predictor.answer``: reading, lungs, Inf-Net on each slice with lungs, and both
  networks of the ensemble with their maps. Serving works on the CPU. The first answer also loads the networks; the
  second also draws the heat map.
- ``step``: the engine's own step at the paper's batch of 20 by micro-batches, half COVID-19 with its attention loss and
  half CAP, in bfloat16 and float32, with and without activation checkpointing: seconds, peak, and what autograd keeps
  for one sample with COVID-19 (in bfloat16 with the weights' copies). On a GPU; on the CPU, in float32, where
  ``--device cpu`` asks for it.

The paper states 4.6 s a scan on a TITAN RTX, where what is timed is not said. 1.48 GiB is what the network's
activations take for one sample in float32 (derived, 1483 MiB with the attention branch), not a figure that it prints.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from full_size_inputs import CLASSES, RECIPE, Mixed, write_model, write_series

PAPER = {"seconds_a_scan": 4.6, "activations_gib_a_sample": 1.48, "where": "TITAN RTX"}
PARTS = ("preprocess", "network", "answer", "step")


def peak_gib(device: str = "cpu") -> float:
    """Most memory so far: of this process, or what torch held of the GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held when it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(holder: Any, name: str, seconds: dict[str, float], step: str) -> None:
    """Have a function of ``holder`` add the time that it takes to ``seconds[step]``."""
    function: Callable[..., Any] = getattr(holder, name)

    @wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - began

    setattr(holder, name, measured)


def config_of(options: argparse.Namespace, checkpointing: bool = False) -> dict[str, Any]:
    """The dual-sampling network's config; what is not named is the paper's."""
    shares = options.batch // options.micro
    sizes = {"depth": options.depth, "width": options.width}
    return {**sizes, "checkpointing": checkpointing, "batch_size": options.batch, "accumulate": shares}


def built(options: argparse.Namespace, checkpointing: bool = False) -> tuple[Any, Any]:
    """The untrained network on the device, and its phase of training."""
    import torch

    from chestflow.methods import registry

    method = registry.get("dual_sampling")
    config = registry.configure(method, config_of(options, checkpointing))
    torch.manual_seed(0)
    network = method.build(config, registry.InputSpec("ct_volume", tuple(options.size), CLASSES))
    return network.to(options.device), method.phases(config)[0]


def measure_preprocess(options: argparse.Namespace, variant: dict[str, Any]) -> list[dict[str, Any]]:
    """From a series in a folder to the network's input, by step."""
    from chestflow.data.recipes import apply
    from chestflow.imaging.read import read_volume
    from chestflow.segmentation.lungs import segment_ct

    moments = [time.perf_counter()]
    volume = read_volume(Path(variant["series"]))
    moments.append(time.perf_counter())
    lungs = segment_ct(volume.hu, volume.spacing_mm)
    moments.append(time.perf_counter())
    apply(volume, lungs.astype("uint8"), {**RECIPE, "size": options.size})
    moments.append(time.perf_counter())
    steps = zip(("read", "find lungs", "resample"), moments, moments[1:], strict=False)
    rows: list[dict[str, Any]] = [{"step": name, "seconds": end - start} for name, start, end in steps]
    return [*rows, {"step": "preprocessing", "seconds": moments[-1] - moments[0], "peak_gib": peak_gib()}]


def measure_network(options: argparse.Namespace, variant: dict[str, Any]) -> list[dict[str, Any]]:
    """The network alone in one precision: the first pass, and the median of those after it."""
    import torch

    from chestflow.training.hardware import autocast

    network = built(options)[0].eval()
    image = (torch.randn(1, 1, *options.size) * 300 - 600).to(options.device)
    lung, seconds = torch.ones_like(image), []
    for _ in range(1 + options.repeats):
        began = time.perf_counter()
        with torch.inference_mode(), autocast(image.device, variant["bf16"]):
            logit = float(network(image, lung).logits[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - began)
        if logit != logit:
            raise RuntimeError("the network's logit is not a number")
    median = statistics.median(seconds[1:] or seconds)
    return [{"first": seconds[0], "seconds": median, "peak_gib": peak_gib(options.device)}]


def measure_answer(options: argparse.Namespace, variant: dict[str, Any]) -> list[dict[str, Any]]:
    """File to answer as served, by step: first with loading the networks, then with the heat map."""
    from chestflow.data import recipes
    from chestflow.segmentation import slice_network
    from chestflow.segmentation.infection import Segmenter
    from chestflow.serving import inputs
    from chestflow.serving.answer import Predictor
    from chestflow.training import inference

    shape = slice_network.Shape(options.inf_net, options.inf_channel, options.inf_side)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        segmenter = Segmenter(slice_network.build(shape), 0.5, (-1350.0, 150.0))
        write_model(model, config_of(options), options.size, segmenter)
        predictor, seconds = Predictor(model, "full"), dict[str, float]()
        for holder, name, step in (
            (inputs, "load", "read"), (predictor, "lungs", "find lungs"), (predictor.marker, "mark", "mark infection"),
            (recipes, "apply", "resample"), (inference, "infer", "both networks"),
        ):  # fmt: skip
            timed(holder, name, seconds, step)
        rows = []
        for which, overlay in (("first", None), ("again", Path(folder) / "map.png")):
            seconds.clear()
            began = time.perf_counter()
            answer = predictor.answer(Path(variant["series"]), overlay=overlay)
            whole = time.perf_counter() - began
            if (answer.status, answer.network, answer.ratio_from) != ("answered", "ensemble", "network"):
                raise RuntimeError(f"not what is to be timed: {answer}")
            steps = {**seconds, "rest": whole - sum(seconds.values()), "file to answer": whole}
            rows += [{"answer": which, "step": step, "seconds": value} for step, value in steps.items()]
    return [*rows[:-1], {**rows[-1], "peak_gib": peak_gib()}]


def measure_step(options: argparse.Namespace, variant: dict[str, Any]) -> list[dict[str, Any]]:
    """An optimiser step as the engine takes it: the first, and the median of those after it."""
    import torch

    from chestflow.training.distributed import World
    from chestflow.training.hardware import autocast, make_reproducible
    from chestflow.training.loader import Reader
    from chestflow.training.phases import apply_freezing
    from chestflow.training.steps import Course, Stepper

    make_reproducible(options.threads)
    device, pack = torch.device(options.device), Mixed(tuple(options.size), options.batch)
    network, phase = built(options, variant["checkpointing"])
    parameters, reader = apply_freezing(network, phase), Reader(pack, pack.table, device)
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = reader.finish(reader.read([1]))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(device, variant["bf16"]):
        phase.loss(network, batch, torch.Generator())
    stepper = Stepper(
        phase, network, parameters, phase.optimiser(parameters), reader, device, variant["bf16"], World(), seed=0
    )
    seconds, began = [], time.perf_counter()
    for _ in stepper.epoch(Course(), [range(options.batch)] * (1 + options.repeats)):
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    kept = sum(held.values()) / 2**30
    facts = {"batch": options.batch, "micro": options.micro, "first": seconds[0]}
    times = {"seconds": statistics.median(seconds[1:] or seconds), "peak_gib": peak_gib(device.type)}
    return [{**facts, **times, "kept_gib": kept, "of_paper": kept / PAPER["activations_gib_a_sample"]}]  # type: ignore[operator]


MEASURES = {
    "preprocess": measure_preprocess, "network": measure_network, "answer": measure_answer, "step": measure_step,
}  # fmt: skip


def variants(part: str, asked: str, cuda: bool) -> list[dict[str, Any]]:
    """What is measured of a part, each with its device."""
    devices = [asked] if asked != "auto" else ["cpu", "cuda"] if cuda else ["cpu"]
    if part in ("preprocess", "answer"):
        return [{"device": "cpu"}]
    if part == "network":
        return [{"device": device, "bf16": bf16} for device in devices for bf16 in (False, True)]
    # bfloat16 3D gradients are wrong on some CPUs, so they are measured on a GPU alone
    chosen = [("cuda", (True, False))] if "cuda" in devices else [("cpu", (False,))] if asked == "cpu" else []
    both = (False, True)
    return [{"device": d, "bf16": b, "checkpointing": c} for d, precisions in chosen for b in precisions for c in both]


def show(part: str, rows: list[dict[str, Any]]) -> None:
    """Print a part's rows under their own headings."""
    print(f"\n{part}" if rows else f"\n{part}: not measured, no CUDA GPU here (--device cpu measures it in float32)")
    heads = list(dict.fromkeys(key for row in rows for key in row))
    for cells in (heads, *([row.get(head, "") for head in heads] for row in rows)) if rows else ():
        print("  ".join(f"{c:>14.3f}" if isinstance(c, float) else f"{c!s:>14}" for c in cells), flush=True)


def parsed() -> argparse.Namespace:
    """The command's options; the defaults are the paper's sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--slices", type=int, default=300, help="of the series")
    parser.add_argument("--plane", type=int, default=512, help="pixels a side of a slice")
    parser.add_argument("--size", type=int, nargs=3, default=[138, 256, 256], metavar=("D", "H", "W"))
    parser.add_argument("--depth", type=int, default=34)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--inf-net", choices=("res2net50", "resnet18"), default="res2net50")
    parser.add_argument("--inf-side", type=int, default=352, help="pixels of Inf-Net's input")
    parser.add_argument("--inf-channel", type=int, default=32)
    parser.add_argument("--batch", type=int, default=20, help="of an optimiser step")
    parser.add_argument("--micro", type=int, default=1, help="volumes that are on the device at once")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes and steps after a first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch % options.micro:
        parser.error(f"--batch {options.batch} is no multiple of --micro {options.micro}")
    return options


def in_child(variant: dict[str, Any]) -> Any:
    """A measurement's rows, or its last words."""
    command = [sys.executable, *sys.argv, "--child", json.dumps(variant)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return [{"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}, no message"])[-1]}]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure each variant in a process of its own and print a table a part."""
    import torch

    options = parsed()
    torch.set_num_threads(options.threads)
    if options.child:
        options.device = options.child["device"]
        print(json.dumps(MEASURES[options.child["part"]](options, options.child)))
        return
    cuda = torch.cuda.is_available()
    about = {"paper": PAPER, "threads": options.threads, "torch": torch.__version__, "depth": options.depth}
    about |= {"width": options.width, "size": options.size, "gpu": torch.cuda.get_device_name() if cuda else None}
    print(json.dumps(about), flush=True)
    found: dict[str, Any] = dict(about)
    with tempfile.TemporaryDirectory() as folder:
        if {"preprocess", "answer"} & set(options.part):
            write_series(Path(folder), options.slices, options.plane)
        for part in options.part:
            found[part] = []
            for variant in variants(part, options.device, cuda):
                rows = in_child({**variant, "part": part, "series": folder})
                found[part] += [{**variant, **row} for row in rows]
            show(part, found[part])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if any("failed" in row for part in options.part for row in found[part]):
        sys.exit(1)


if __name__ == "__main__":
    main()
