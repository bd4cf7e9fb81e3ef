"""Averaging checkpoints: ours against torch._foreach and eager, beside the bandwidth of a plain copy in the same run."""

from __future__ import annotations

import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhr.ops import weighted_average

from . import merge_memory
from .measure import copy_bandwidth, interleave, machine, quiet_machine, rms_error

LINUX = platform.system() == "Linux"  # whose /proc tells peak memory

# Largest RMS error against float64 that is taken for the same result; eager bfloat16 rounds at every step.
AGREEMENT = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


def stack_mean(tensors: list[Tensor], weights: list[float]) -> Tensor:
    """The natural one-liner; uniform weights only."""
    return torch.stack(tensors).mean(0)


def accumulate(tensors: list[Tensor], weights: list[float]) -> Tensor:
    """One multiply-add after the other, rounded to the tensors' dtype each time."""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def foreach(tensors: list[Tensor], weights: list[float]) -> Tensor:
    """torch._foreach over pieces that fit the cache, as a fast merge of many small tensors does it."""
    out = torch.empty_like(tensors[0])
    pieces = [t.view(-1).split(1 << 16) for t in (out, *tensors)]
    torch._foreach_zero_(pieces[0])
    for piece, weight in zip(pieces[1:], weights, strict=True):
        torch._foreach_add_(pieces[0], piece, alpha=weight)
    return out


def ours(tensors: list[Tensor], weights: list[float]) -> Tensor:
    return weighted_average(tensors, weights)


PEERS: dict[str, Callable[[list[Tensor], list[float]], Tensor]] = {
    "ours": ours,
    "foreach": foreach,
    "accumulate": accumulate,
    "stack_mean": stack_mean,
}


def measure(dtype: torch.dtype, count: int, n_bytes: int, repetitions: int) -> dict[str, Any]:
    """Times of averaging `count` tensors of `n_bytes` each; no ratio for a peer whose result disagrees."""
    torch.manual_seed(0)
    tensors = [torch.randn(n_bytes // dtype.itemsize).to(dtype) for _ in range(count)]
    weights = [1.0 / count] * count
    part = slice(0, 1 << 20)
    truth = sum(w * t[part].double() for w, t in zip(weights, tensors, strict=True))
    assert isinstance(truth, Tensor)
    errors = {name: rms_error(peer([t[part] for t in tensors], weights), truth) for name, peer in PEERS.items()}
    times = interleave({n: lambda p=p: p(tensors, weights) for n, p in PEERS.items()}, budget=0.0, least=repetitions)
    moved = (count + 1) * n_bytes
    best = {name: min(values) for name, values in times.items()}
    agrees = {name: value <= AGREEMENT[dtype] for name, value in errors.items()}
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "count": count,
        "megabytes_each": n_bytes >> 20,
        "error": errors,
        "agrees": agrees,
        "ms": {name: statistics.median(values) * 1e3 for name, values in times.items()},
        "gb_per_s": {name: moved / seconds / 1e9 for name, seconds in best.items()},
        "speed_up": {
            n: statistics.median(times[n]) / statistics.median(times["ours"]) if ok else None
            for n, ok in agrees.items()
        },
    }


def run(quick: bool = False) -> dict[str, Any]:
    """Averages 8 tensors of 200 MB, and merges 8 adapters of that size (quick: 32 MB); returns the machine, results and tables."""
    size = (32 if quick else 200) << 20
    with quiet_machine():
        results = [measure(dtype, 8, size, 5 if quick else 11) for dtype in (torch.float32, torch.bfloat16)]
        bandwidth = copy_bandwidth()
        host = {**machine(), "copy_gb_per_s": round(bandwidth, 1)}
    rows = []
    for result in results:
        for name in PEERS:
            speed_up = result["speed_up"][name]
            rows.append(
                [
                    f"{result['dtype']} {name}",
                    result["ms"][name],
                    result["gb_per_s"][name],
                    result["gb_per_s"][name] / bandwidth,
                    result["error"][name],
                    "disagrees" if speed_up is None else speed_up,
                ]
            )
    table = {
        "title": f"Averaging 8 tensors of {size >> 20} MB",
        "columns": ["", "ms", "GB/s", "of copy bandwidth", "RMS error", "time / ours"],
        "rows": rows,
        "note": f"A copy moves {bandwidth:.1f} GB/s here, reads and writes counted.",
    }
    tables = [table]
    if LINUX:
        with tempfile.TemporaryDirectory() as folder:
            inputs = merge_memory.make_inputs(Path(folder), 8, size >> 20)
            memory = merge_memory.measure(inputs, Path(folder) / "merged", "uniform", "factor")
        cells = [memory[key] / 1e6 for key in ("inputs", "before", "added")]
        tables.append(
            {
                "title": "Memory of merging 8 adapters, layer by layer",
                "columns": ["", "inputs MB", "process before MB", "added at the peak MB", "of the inputs"],
                "rows": [["uniform, factor space", *cells, memory["added"] / memory["inputs"]]],
            }
        )
        results.append({"memory": memory})
    return {"benchmark": "merge", "quick": quick, "machine": host, "results": results, "tables": tables}
