"""The CUDA kernels against the byte floor, plain cuBLAS, eager torch, torch.compile and PEFT's Poly: `python -m benchmarks.gpu`.

First the two rates that bound everything: a device copy and a bfloat16 matrix product. Then the routed adapter alone, forward
and backward, over tokens N, width d, rank r and tasks T, and whole adapted layers at one shape. Every time is the median of
runs that begin with a cold L2, taken with CUDA events; beside it the fraction of the floor, bytes / copy bandwidth: forward
reads x and y and writes y, backward reads dy, x and dx and writes dx. Where results disagree, no time is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mhr.ops import native_ops, routed_linear

from .measure import machine, rms_error

AGREEMENT = 2e-2  # RMS, bfloat16
N_SKILLS, N_HEADS = 8, 8


class Timer:
    """Medians of times with a cold L2; on the CPU (only to try the script) by the wall clock."""

    def __init__(self, device: str, repetitions: int):
        self.device, self.repetitions = device, repetitions
        self.flush = torch.empty((256 << 20) if device == "cuda" else 1024, dtype=torch.uint8, device=device)

    def __call__(self, function: Callable[[], Any]) -> float:
        """Seconds."""
        for _ in range(3):
            function()
        times = []
        for _ in range(self.repetitions):
            self.flush.zero_()
            if self.device == "cuda":
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                function()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end) / 1e3)
            else:
                start = time.perf_counter()
                function()
                times.append(time.perf_counter() - start)
        return statistics.median(times)


def rates(timer: Timer, size: int) -> dict[str, float]:
    """GB/s of a copy, bytes read and written counted, and TFLOP/s of a bfloat16 product of random matrices."""
    source = torch.randn(size * size, device=timer.device)
    target = torch.empty_like(source)
    copy = timer(lambda: target.copy_(source))
    a, b = (torch.randn(size, size, device=timer.device, dtype=torch.bfloat16) for _ in range(2))
    product = timer(lambda: a @ b)
    return {"copy_gb_per_s": 2 * source.nbytes / copy / 1e9, "gemm_tflop_per_s": 2 * size**3 / product / 1e12}


class Adapter:
    """One routed adapter with N tokens in T equal segments, ours and as a loop of cuBLAS products."""

    def __init__(self, device: str, n: int, d: int, rank: int, tasks: int):
        def normal(*shape: int, spread: float = 1.0) -> Tensor:
            return (torch.randn(*shape, device=device) * spread).bfloat16()

        torch.manual_seed(0)
        self.x, self.y, self.dy, self.dx = (normal(n, d) for _ in range(4))
        self.a, self.b = normal(tasks, d, rank, spread=d**-0.5), normal(tasks, rank, d, spread=rank**-0.5)
        self.rows = torch.arange(tasks, device=device)
        self.segments = [slice(i * (n // tasks), (i + 1) * (n // tasks)) for i in range(tasks)]
        self.z: Tensor = self.forward(self.y.clone())

    def forward(self, y: Tensor) -> Tensor:
        return torch.ops.mhr.routed_adapter_forward(
            y, self.x, self.a, self.b, self.rows, None, None, None, None, "none", 1.0
        )

    def backward(self, dx: Tensor) -> tuple[Tensor, Tensor]:
        dz, db, _ = torch.ops.mhr.routed_adapter_backward_dy(
            self.dy, self.z, self.b, self.rows, None, "none", 1.0, False
        )
        da, _ = torch.ops.mhr.routed_adapter_backward_x(dx, self.x, dz, self.a, self.rows, None, True, False)
        return da, db

    def forward_cublas(self, y: Tensor) -> None:
        for t, s in enumerate(self.segments):
            y[s].addmm_(self.x[s] @ self.a[t], self.b[t])

    def backward_cublas(self, dx: Tensor) -> tuple[Tensor, Tensor]:
        da, db = [], []
        for t, s in enumerate(self.segments):
            dz = self.dy[s] @ self.b[t].mT
            db.append((self.x[s] @ self.a[t]).mT @ self.dy[s])
            da.append(self.x[s].mT @ dz)
            dx[s].addmm_(dz, self.a[t].mT)
        return torch.stack(da), torch.stack(db)

    def disagreement(self) -> float:
        """The largest RMS difference between ours and cuBLAS: y, dx, dA, dB."""
        y, y_peer, dx, dx_peer = self.y.clone(), self.y.clone(), self.dx.clone(), self.dx.clone()
        self.forward(y)
        self.forward_cublas(y_peer)
        ours, peers = (y, dx, *self.backward(dx)), (y_peer, dx_peer, *self.backward_cublas(dx_peer))
        return max(rms_error(a, b) for a, b in zip(ours, peers, strict=True))


def adapter(timer: Timer, bandwidth: float, n: int, d: int, rank: int, tasks: int) -> dict[str, Any]:
    case = Adapter(timer.device, n, d, rank, tasks)
    result: dict[str, Any] = {"N": n, "d": d, "r": rank, "T": tasks, "disagreement": case.disagreement()}
    if not result["disagreement"] <= AGREEMENT:
        return result
    tensor = case.x.nbytes / bandwidth / 1e9
    for name, ours, peer, tensors in (
        ("forward", case.forward, case.forward_cublas, 3),
        ("backward", case.backward, case.backward_cublas, 4),
    ):
        target = case.y.clone() if name == "forward" else case.dx.clone()
        seconds = timer(partial(ours, target))
        result[name] = {
            "us": seconds * 1e6,
            "of_floor": seconds / (tensors * tensor),
            "of_cublas": seconds / timer(partial(peer, target)),
        }
    return result


def layers(timer: Timer, n: int, d: int, rank: int, tasks: int) -> dict[str, Any]:
    """Overheads in microseconds of whole adapted layers over the frozen linear, forward and forward + backward."""
    torch.manual_seed(0)
    device, dtype = timer.device, torch.bfloat16
    length = n // tasks
    x = torch.randn(tasks, length, d, device=device, dtype=dtype, requires_grad=True)
    dy = torch.randn(tasks, length, d, device=device, dtype=dtype)
    base = torch.nn.Linear(d, d, device=device, dtype=dtype).requires_grad_(False)
    shapes = ((N_HEADS, N_SKILLS, d // N_HEADS, rank), (N_HEADS, N_SKILLS, rank, d // N_HEADS))
    bank_a, bank_b = ((torch.randn(*s, device=device) * 0.05).to(dtype).requires_grad_() for s in shapes)
    w = torch.rand(tasks, N_HEADS, N_SKILLS, device=device).softmax(-1).requires_grad_()
    rows = torch.arange(tasks, device=device)

    def ours() -> Tensor:
        return routed_linear(x, base.weight, base.bias, bank_a, bank_b, w, rows, 1.0)

    def eager() -> Tensor:
        a = torch.einsum("uhs,hsdr->uhdr", w.to(dtype), bank_a).reshape(tasks, d, rank)
        b = torch.einsum("uhs,hsrd->urhd", w.to(dtype), bank_b).reshape(tasks, rank, d)
        return base(x) + torch.bmm(torch.bmm(x, a), b)

    leaves = {"linear": [x], "ours": [x, bank_a, bank_b, w], "eager": [x, bank_a, bank_b, w]}
    peers: dict[str, Callable[[], Tensor]] = {"linear": lambda: F.linear(x, base.weight, base.bias)}
    peers |= {"ours": ours, "eager": eager}
    if device == "cuda":
        peers["compile"], leaves["compile"] = torch.compile(eager), leaves["eager"]
    try:
        from peft import PolyConfig
        from peft.tuners.poly.layer import Linear as PolyLinear
    except ImportError:
        pass
    else:
        config = PolyConfig(r=rank, n_tasks=tasks, n_skills=N_SKILLS, n_splits=N_HEADS, target_modules=["x"])
        poly = PolyLinear(base, "default", config).to(device, dtype)
        peers["peft_poly"] = lambda: poly(x, task_ids=rows)
        leaves["peft_poly"] = [x, *(p for p in poly.parameters() if p.requires_grad)]
    result: dict[str, Any] = {"N": n, "d": d, "r": rank, "T": tasks}
    result["disagreement"] = rms_error(ours().detach(), eager().detach())
    if not result["disagreement"] <= AGREEMENT:
        return result

    def step(name: str) -> tuple[Tensor, ...]:
        return torch.autograd.grad(peers[name](), leaves[name], dy)

    for mode in ("forward", "train"):
        times = {}
        for name, run in peers.items():
            if mode == "forward":
                times[name] = timer(torch.no_grad()(run))
            else:
                times[name] = timer(partial(step, name))
        linear = times.pop("linear")
        result[mode] = {"linear_us": linear * 1e6, **{k: (v - linear) * 1e6 for k, v in times.items()}}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--device", default="cuda", help="cpu only tries the script")
    parser.add_argument("--quick", action="store_true", help="small shapes")
    options = parser.parse_args()
    timer = Timer(options.device, 3 if options.quick else 15)
    found = rates(timer, 256 if options.quick else 8192)
    about = {**machine(), "cuda_kernels": sorted(n for n, devices in native_ops().items() if "cuda" in devices)}
    if options.device == "cuda":
        about |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    print(json.dumps({**about, **found}))
    tokens, widths = ((64, 128), (64,)) if options.quick else ((2048, 8192, 32768), (1024, 2048, 4096, 8192))
    print(
        f"{'N':>6} {'d':>5} {'r':>3} {'T':>3} {'forward':>9} {'/floor':>7} {'/cublas':>8} {'backward':>9} {'/floor':>7} {'/cublas':>8}"
    )
    sweep = []
    for n in tokens:
        for d in widths:
            for rank in (1, 4, 16, 64):
                for tasks in (1, 8, 64):
                    row = adapter(timer, found["copy_gb_per_s"], n, d, rank, tasks)
                    sweep.append(row)
                    cells = "results disagree"
                    if "forward" in row:
                        cells = " ".join(
                            f"{row[k]['us']:9.1f} {row[k]['of_floor']:7.2f} {row[k]['of_cublas']:8.2f}"
                            for k in ("forward", "backward")
                        )
                    print(f"{n:6d} {d:5d} {rank:3d} {tasks:3d} {cells}", flush=True)
    shape = (64, 64, 4, 4) if options.quick else (8192, 4096, 16, 8)
    layer = layers(timer, *shape)
    print(json.dumps(layer))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        json.dumps({"machine": about, "rates": found, "adapter": sweep, "layers": layer}, indent=1)
    )


if __name__ == "__main__":
    main()
