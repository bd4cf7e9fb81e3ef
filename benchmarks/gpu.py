"""The CUDA kernels against the byte floor and their peers: `python -m benchmarks.gpu [kernels] [shapes] [steps]`.

`kernels`: the time of each kernel at nine shapes. `shapes`: the routed adapter alone against its floor, cuBLAS and vLLM, and
the whole adapted layer against PEFT's Poly and LoRA, eager torch and torch.compile, over tokens N, width d, rank r and tasks
T, after mixing and averaging, three layers of one x in one call and in three, and short segments; the shape of the targets first, then its neighbours, as far as the time goes. `steps`: training
steps of T5-large's and of a Llama-1B's shape. `once`: each op once, for a profiler.

gpu.json and gpu.md are written after every shape. Errors are against float64 on the same inputs and stand beside the times.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from mhr.files import read_json
from mhr.ops import native_ops

from .gpu_adapter import Adapter, adapter, kernels
from .gpu_layer import COMPILED, averaging, layer, mixing, together
from .gpu_steps import STEPS, TINY, steps
from .gpu_tables import tables
from .gpu_timer import Row, Timer, attempt, first_line
from .measure import machine
from .pages import save
from .train import Setting

TOKENS, WIDTHS, RANKS, TASKS = (2048, 8192, 32768), (1024, 2048, 4096, 8192), (1, 4, 16, 64), (1, 8, 64)
# N, d, r with 8 tasks: small and large, wide and narrow, every padding of the rank.
KERNELS = (
    *((8192, 4096, 16), (2048, 1024, 16), (2048, 4096, 16), (8192, 1024, 4), (8192, 4096, 4), (8192, 4096, 64)),
    *((8192, 8192, 16), (32768, 4096, 16), (32768, 8192, 64)),
)
SHORT = ((8192, 4096, 16, 8, 512), (8192, 4096, 16, 16, 512))  # N, d, r, tasks, segments
TINY_SHORT = ((64, 64, 4, 2, 16),)
TINY_AXES = ((64, 128), (64,), (1, 4), (1, 8))
PARTS = ("kernels", "shapes", "steps", "once")
LIST_SECTIONS = ("kernels", "ops", "shapes", "short", "together", "steps")


class Results:
    """What has been measured, in gpu.json and gpu.md of a folder at any time.

    Parts of one run, which its name tells, add to the same files; another run begins new ones.
    """

    def __init__(self, folder: Path, run: str, about: Row):
        self.folder = folder
        file = folder / "gpu.json"
        self.record: Row = {"benchmark": "gpu", "command": "make gpu-check", "run": run}
        if file.exists():
            before = read_json(file)
            if before.get("run") == run:
                self.record = before
        self.record.setdefault("machine", about)
        for section in LIST_SECTIONS:
            self.record.setdefault(section, [])
        self.record.setdefault("failed", [])

    def write(self) -> None:
        self.record["tables"] = tables(self.record)
        save(self.record, self.folder, {})

    def attempt(self, what: str, measured: Callable[[], Row], section: str) -> None:
        """Adds a row, or what went wrong in its place."""
        row, why = attempt(measured)
        if why:
            self.record["failed"].append({"what": what, "error": why})
        else:
            self.record[section].append(row)
        print(what, why or row, flush=True)
        self.write()


def about(timer: Timer) -> Row:
    found = machine()
    found["cuda_kernels"] = sorted(n for n, devices in native_ops().items() if "cuda" in devices)
    if timer.on_gpu:
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, **nvidia_smi()}
    return found


def nvidia_smi() -> Row:
    """Driver, clocks and limits, as nvidia-smi tells them now."""
    fields = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "temperature.gpu")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"nvidia_smi": first_line(error)}
    return dict(zip(fields, (value.strip() for value in done.stdout.split(",")), strict=False))


def grid(axes: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """The shape of the targets first, then those around it: what time cuts off is what matters least."""
    return sorted(itertools.product(*axes), key=lambda shape: sum(a != b for a, b in zip(shape, COMPILED, strict=True)))


def measure_kernels(results: Results, timer: Timer, bandwidth: float, quick: bool) -> None:
    shapes = [(64, 64, 4)] if not timer.on_gpu else KERNELS[:4] if quick else KERNELS
    for n, d, rank in shapes:
        results.attempt(
            f"kernels, {(n, d, rank, 8)}", partial(kernels, timer, bandwidth, n, d, rank, tasks=8), "kernels"
        )


def measure_shapes(results: Results, timer: Timer, bandwidth: float, quick: bool, end: float) -> None:
    tiny = not timer.on_gpu
    results.attempt("mix", lambda: mixing(timer, bandwidth, *((3, 64, 4, 2) if tiny else (144, 1024, 16, 8))), "ops")
    shapes = grid(TINY_AXES if tiny else (TOKENS, WIDTHS, RANKS, TASKS))
    results.record["shapes_of_grid"] = len(shapes)
    for at, shape in enumerate(shapes[:1] if tiny and quick else shapes):
        if at and time.monotonic() > end:
            break
        results.attempt(f"shape {shape}", partial(one_shape, timer, bandwidth, *shape), "shapes")
        if at == 0:
            size = 1000 if tiny else 100 << 20
            results.attempt("average", partial(averaging, timer, bandwidth, 8, size), "ops")
            results.attempt("together", partial(together, timer, bandwidth, *shape), "together")
            for short in TINY_SHORT if tiny else SHORT:
                results.attempt(f"short segments {short}", partial(adapter, timer, bandwidth, *short), "short")


def one_shape(timer: Timer, bandwidth: float, n: int, d: int, rank: int, tasks: int) -> Row:
    return {"adapter": adapter(timer, bandwidth, n, d, rank, tasks), "layer": layer(timer, n, d, rank, tasks)}


def measure_steps(results: Results, timer: Timer, end: float) -> None:
    for name, setting in (STEPS if timer.on_gpu else TINY).items():
        if time.monotonic() > end:
            results.record["failed"].append({"what": name, "error": "no time was left"})
            continue

        def measured(name: str = name, setting: Setting = setting) -> None:
            section = results.record["steps"]
            for at, row in enumerate(steps(timer, name, setting)):
                section[-1 if at else len(section) :] = [row]
                print(row, flush=True)
                results.write()

        _, why = attempt(measured)
        if why:
            results.record["failed"].append({"what": name, "error": why})
            results.write()


def once(device: str) -> None:
    """Every kernel once at the shape of the targets, or at a tiny one on the CPU."""
    case = Adapter(device, *(COMPILED if device == "cuda" else (64, 64, 4, 8)))
    case.forward(case.y)
    case.backward(case.dx)
    banks = [torch.randn(8, 8, case.x.shape[1] // 8, 16, device=device).bfloat16() for _ in range(2)]
    weights = [torch.rand(8, 8, 8, device=device)] * 2
    for factor in torch.ops.mhr.mix(banks, weights, [1, 1], torch.bfloat16):
        factor.sum().item()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS), help="default: all but once")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--run", default=time.strftime("%Y-%m-%d %H:%M:%S"), help="adds to what this run has written")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the script")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, fewer shapes")
    parser.add_argument("--minutes", type=float, default=4.0, help="what does not fit is left out")
    options = parser.parse_args(arguments)
    wrong = set(options.parts) - set(PARTS)
    if wrong:
        parser.error(f"parts are {', '.join(PARTS)}, got {', '.join(sorted(wrong))}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    end = time.monotonic() + 60 * options.minutes
    if options.device == "cuda" and "cuda" not in native_ops()["routed_adapter_forward"]:
        print(
            "mhr: there is no native CUDA kernel to measure: MHR_CUDA=1 setup.py build_ext --inplace", file=sys.stderr
        )
        return 2
    if "once" in options.parts:
        once(options.device)
    parts = [part for part in PARTS[:3] if part in options.parts or not options.parts]
    if not parts:
        return 0
    timer = Timer(options.device, 1 if options.device == "cpu" else 5 if options.quick else 11)
    rates = timer.rates(8192 if timer.on_gpu else 256)
    bandwidth = rates["copy_gb_per_s"]
    results = Results(options.output, options.run, {**about(timer), **{n: round(r, 1) for n, r in rates.items()}})
    print(results.record["machine"], flush=True)
    for part in parts:
        if part == "kernels":
            measure_kernels(results, timer, bandwidth, options.quick)
        elif part == "shapes":
            measure_shapes(results, timer, bandwidth, options.quick, end)
        else:
            measure_steps(results, timer, end)
    return 1 if results.record["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
