"""How every benchmark measures: one thread, thread CPU time, all implementations interleaved, medians of paired differences.

Machines are shared and noisy: only ratios of times taken side by side in one process are meant to be quoted. What is right is
given by the same computation in float64; the error of each implementation is printed, and times are withheld where ours is off.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mhr.errors import ConfigError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@contextmanager
def quiet_machine() -> Iterator[None]:
    """One thread, and an allocator that keeps its pages: page faults would otherwise drown what is measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if platform.system() == "Linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def interleave(
    functions: Mapping[str, Callable[[], Any]],
    budget: float,
    least: int = 5,
    most: int = 200,
    limit: float = float("inf"),
) -> dict[str, list[float]]:
    """Seconds of CPU time of each call, in rounds of all functions in turn, every other round backwards.

    Rounds go on for about `budget` seconds, at least `least` and at most `most` of them; on a slow processor, `limit` seconds
    end them all the same, after one at the earliest.
    """
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        functions[name]()
    begin = time.perf_counter()
    for turn in range(most):
        spent = time.perf_counter() - begin
        if (turn >= least and spent > budget) or (turn and spent > limit):
            break
        for name in in_turn(names, turn):
            start = time.thread_time_ns()
            functions[name]()
            times[name].append((time.thread_time_ns() - start) * 1e-9)
    return times


def in_turn(names: Iterable[str], turn: int) -> list[str]:
    """Every other round goes backwards: what a call leaves behind does not always meet the same one."""
    return list(names)[:: 1 if turn % 2 == 0 else -1]


def median_difference(times: list[float], base: list[float]) -> float:
    """The median of the differences within a round: what slows a whole round cancels."""
    return statistics.median(a - b for a, b in zip(times, base, strict=True))


def copy_bandwidth(n_bytes: int = 1 << 28, repetitions: int = 7) -> float:
    """GB/s of a copy between two buffers larger than the caches, bytes read and bytes written counted."""
    source, target = torch.ones(n_bytes, dtype=torch.uint8), torch.empty(n_bytes, dtype=torch.uint8)
    times = interleave({"copy": lambda: target.copy_(source)}, budget=0.0, least=repetitions)["copy"]
    return 2 * n_bytes / min(times) / 1e9


def machine() -> dict[str, Any]:
    """The machine and versions of a measurement."""
    from mhr.ops import build_info, native_ops

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "simd": build_info().get("simd", "none: the references are used"),
        "native": sorted(name for name, devices in native_ops().items() if "cpu" in devices),
        "commit": commit(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """What MHR_COMMIT says, for sources that travelled without their history; else as git describes them, or "unknown"."""
    named = os.environ.get("MHR_COMMIT")
    if named:
        return named
    root = Path(__file__).resolve().parents[1]
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def computed_dtypes() -> tuple[torch.dtype, ...]:
    """float32, and bfloat16 where the processor has instructions for it. torch emulates it elsewhere, minutes a shape."""
    from mhr.ops import build_info

    level = build_info().get("simd", "")
    has_bf16 = level == "avx512" if platform.machine().lower() in ("x86_64", "amd64") else level != ""
    return (torch.float32, torch.bfloat16) if has_bf16 else (torch.float32,)


def require_peft() -> None:
    """Raise ConfigError where PEFT, which is compared with, is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("this benchmark compares with PEFT, which is not installed: pip install 'mhr[bench]'")


def worst_error(found: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> float:
    """The largest RMS error among the results of an implementation, against the same results in float64."""
    return max(rms_error(a.reshape(b.shape), b) for a, b in zip(found, truth, strict=True))


def rms_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """RMS(found - truth) / RMS(truth)."""
    found, truth = found.detach(), truth.detach()
    scale = float(truth.double().square().mean().sqrt())
    return float((found.double() - truth.double()).square().mean().sqrt()) / max(scale, 1e-30)
