"""The CUDA kernels against the byte floor, plain cuBLAS, eager torch, torch.compile and PEFT: `python -m benchmarks.gpu`.

First the two rates that bound everything: a device copy and a bfloat16 matrix product. Then a training step of a T5 of
T5-large's shape; mixing and averaging; and over tokens N, width d, rank r and tasks T the routed adapter alone, against a
loop of cuBLAS products, and the whole adapted layer, against eager and PEFT's Poly. Every time is the median of runs that
begin with a cold L2, taken with CUDA events; beside it its multiple of the floor, bytes / copy bandwidth. Errors are against
float64 on the same inputs, each implementation's is kept, and where ours is off, no time is printed.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PolyConfig
from peft.tuners.poly.layer import Linear as PolyLinear
from torch import Tensor
from torch.nn import functional as F

from mhr.ops import mix, native_ops, routed_linear, weighted_average

from .measure import machine, worst_error
from .pages import save
from .train import AGREEMENT as AGREEMENT_FP32
from .train import Peers, Setting

AGREEMENT = 2e-2  # largest RMS error of ours against float64, in bfloat16
N_SKILLS, N_HEADS = 8, 8
TOKENS, WIDTHS, RANKS, TASKS = (2048, 8192, 32768), (1024, 2048, 4096, 8192), (1, 4, 16, 64), (1, 8, 64)
COMPILED = (8192, 4096, 16, 8)  # torch.compile takes its time: at one shape only
T5_LARGE = Setting(1024, 24, 16, 32128, 16, 512, 128, "cuda")

Row = dict[str, Any]


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

    def errors(self) -> dict[str, float]:
        """The largest RMS errors of ours and of cuBLAS against float64: y, dx, dA, dB."""
        exact = copy.copy(self)
        for name in ("x", "y", "dy", "dx", "a", "b"):
            setattr(exact, name, getattr(self, name).double())

        def results(case: Adapter, how: str) -> list[Tensor]:
            y, dx = case.y.clone(), case.dx.clone()
            getattr(case, f"forward{how}")(y)
            return [y, dx, *getattr(case, f"backward{how}")(dx)]

        truth = results(exact, "_cublas")
        return {name: worst_error(results(self, how), truth) for name, how in (("ours", ""), ("cublas", "_cublas"))}


def adapter(timer: Timer, bandwidth: float, n: int, d: int, rank: int, tasks: int) -> Row:
    """The op alone. Forward reads x and y and writes y; backward reads dy, x and dx and writes dx."""
    case = Adapter(timer.device, n, d, rank, tasks)
    result: Row = {"N": n, "d": d, "r": rank, "T": tasks, "errors": case.errors()}
    if not result["errors"]["ours"] <= AGREEMENT:
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


def layer(timer: Timer, n: int, d: int, rank: int, tasks: int) -> Row:
    """Overheads in microseconds of whole adapted layers over the frozen linear, forward and forward + backward."""
    torch.manual_seed(0)
    device, dtype = timer.device, torch.bfloat16
    x = torch.randn(tasks, n // tasks, d, device=device, dtype=dtype, requires_grad=True)
    dy = torch.randn(tasks, n // tasks, d, device=device, dtype=dtype)
    base = torch.nn.Linear(d, d, device=device, dtype=dtype).requires_grad_(False)
    config = PolyConfig(r=rank, n_tasks=tasks, n_skills=N_SKILLS, n_splits=N_HEADS, target_modules=["x"])
    poly = PolyLinear(base, "default", config).to(device, dtype)
    shapes = ((N_HEADS, N_SKILLS, d // N_HEADS, rank), (N_HEADS, N_SKILLS, rank, d // N_HEADS))
    bank_a, bank_b = ((torch.randn(*s, device=device) * d**-0.5).to(dtype).requires_grad_() for s in shapes)
    w = torch.rand(tasks, N_HEADS, N_SKILLS, device=device).softmax(-1).requires_grad_()
    rows = torch.arange(tasks, device=device)

    def ours() -> Tensor:
        return routed_linear(x, base.weight, base.bias, bank_a, bank_b, w, rows, 1.0)

    def formula(x: Tensor, linear: torch.nn.Linear, bank_a: Tensor, bank_b: Tensor, w: Tensor) -> Tensor:
        a = torch.einsum("uhs,hsdr->uhdr", w, bank_a).reshape(tasks, d, rank)
        b = torch.einsum("uhs,hsrd->urhd", w, bank_b).reshape(tasks, rank, d)
        return linear(x) + torch.bmm(torch.bmm(x, a), b)

    def eager() -> Tensor:
        return formula(x, base, bank_a, bank_b, w.to(dtype))

    own = [x, bank_a, bank_b, w]
    peers: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {
        "linear": (lambda: F.linear(x, base.weight, base.bias), [x]),
        "ours": (ours, own),
        "eager": (eager, own),
        "peft_poly": (lambda: poly(x, task_ids=rows), [x, *(p for p in poly.parameters() if p.requires_grad)]),
    }
    if (n, d, rank, tasks) == COMPILED:
        peers["compile"] = (torch.compile(eager), own)
    with torch.no_grad():
        exact = copy.deepcopy(base).double()
        truth = [formula(x.double(), exact, bank_a.double(), bank_b.double(), w.double())]
        result: Row = {"errors": {n: worst_error([f()], truth) for n, f in (("ours", ours), ("eager", eager))}}
    if not result["errors"]["ours"] <= AGREEMENT:
        return result
    for mode in ("forward", "train"):
        times = {}
        for name, (forward, leaves) in peers.items():
            if mode == "forward":
                times[name] = timer(torch.no_grad()(forward))
            else:
                times[name] = timer(lambda f=forward, of=leaves: torch.autograd.grad(f(), of, dy))
        linear = times.pop("linear")
        over = {name: (seconds - linear) * 1e6 for name, seconds in times.items()}
        result[mode] = {"linear_us": linear * 1e6, **over, "of_poly": over["ours"] / over["peft_poly"]}
    return result


def mixing(timer: Timer, bandwidth: float, n_layers: int, d: int, rank: int, tasks: int) -> Row:
    """All factors of a model in one call, and back, against an einsum for each."""
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=timer.device).bfloat16().requires_grad_()

    banks = [random(N_HEADS, N_SKILLS, d // N_HEADS, rank) for _ in range(n_layers)]
    banks += [random(N_HEADS, N_SKILLS, rank, d // N_HEADS) for _ in range(n_layers)]
    head_dims = [1] * n_layers + [2] * n_layers
    w = torch.rand(tasks, N_HEADS, N_SKILLS, device=timer.device).softmax(-1).requires_grad_()

    def ours() -> list[Tensor]:
        return mix(banks, [w] * len(banks), head_dims)

    def formula(banks: list[Tensor], w: Tensor) -> list[Tensor]:
        a = [torch.einsum("uhs,hsdr->uhdr", w, b).flatten(1, 2) for b in banks[:n_layers]]
        b = [torch.einsum("uhs,hsrd->urhd", w, b).flatten(2) for b in banks[n_layers:]]
        return a + b

    def eager() -> list[Tensor]:
        return formula(banks, w.bfloat16())

    truth = formula([bank.double() for bank in banks], w.double())
    errors = {name: worst_error(peer(), truth) for name, peer in (("ours", ours), ("eager", eager))}
    result: Row = {"what": f"mix, {len(banks)} banks, d {d}, r {rank}, T {tasks}", "errors": errors}
    if not errors["ours"] <= AGREEMENT:
        return result
    mixed = ours()
    grads = [torch.randn_like(m) for m in mixed]
    read, written = (sum(t.nbytes for t in tensors) for tensors in (banks, mixed))

    def train(forward: Callable[[], list[Tensor]]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), [*banks, w], grads)

    for mode, run, peer, moved in (
        ("forward", torch.no_grad()(ours), torch.no_grad()(eager), read + written),
        ("train", partial(train, ours), partial(train, eager), 3 * read + 2 * written),
    ):
        seconds = timer(run)
        floor = moved / bandwidth / 1e9
        result[mode] = {"us": seconds * 1e6, "of_floor": seconds / floor, "of_eager": seconds / timer(peer)}
    return result


def averaging(timer: Timer, bandwidth: float, count: int, size: int) -> Row:
    tensors = [torch.randn(size, device=timer.device).bfloat16() for _ in range(count)]
    weights = [1.0 / count] * count

    def eager() -> Tensor:
        total = tensors[0].float() * weights[0]
        for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
            total.add_(tensor, alpha=weight)
        return total.bfloat16()

    truth = torch.zeros(size, dtype=torch.float64, device=timer.device)
    for tensor, weight in zip(tensors, weights, strict=True):
        truth.add_(tensor, alpha=weight)
    results = {"ours": weighted_average(tensors, weights), "eager": eager()}
    errors = {name: worst_error([found], [truth]) for name, found in results.items()}
    result: Row = {"what": f"weighted_average, {count} of {tensors[0].nbytes >> 20} MiB", "errors": errors}
    if errors["ours"] <= AGREEMENT:
        seconds = timer(lambda: weighted_average(tensors, weights))
        floor = (count + 1) * tensors[0].nbytes / bandwidth / 1e9
        result["forward"] = {"us": seconds * 1e6, "of_floor": seconds / floor, "of_eager": seconds / timer(eager)}
    return result


def training_step(timer: Timer, setting: Setting) -> Row:
    """A whole step in bfloat16, after ours was found right in float32."""
    peers = Peers(setting)
    errors = {name: max(of.values()) for name, of in peers.errors().items()}
    result: Row = {"setting": vars(setting), "errors": errors}
    if not errors["ours"] <= AGREEMENT_FP32:
        return result
    for model in peers.models.values():
        model.to(torch.bfloat16)
    result["ms"] = {name: timer(peers.step(name)) * 1e3 for name in peers.models}
    frozen = result["ms"]["frozen"]
    result["of_frozen"] = {name: ms / frozen for name, ms in result["ms"].items()}
    return result


def tables(record: Row) -> list[dict[str, Any]]:
    step = record["step"]
    ops_rows = []
    for row in record["mixing"]:
        for mode in ("forward", "train"):
            cells = list(row[mode].values()) if mode in row else ["ours is off" if "forward" not in row else ""] * 3
            ops_rows.append([f"{row['what']}, {mode}", *cells])
    shape_rows = []
    for row in record["shapes"]:
        cells: list[Any] = []
        for part, modes, keys in (
            ("adapter", ("forward", "backward"), ("us", "of_floor", "of_cublas")),
            ("layer", ("forward", "train"), ("ours", "of_poly")),
        ):
            for mode in modes:
                found = row[part].get(mode)
                cells += ["ours is off"] * len(keys) if found is None else [found[key] for key in keys]
        shape_rows.append([*(row["adapter"][key] for key in "NdrT"), *cells])
    return [
        {
            "title": "A training step of T5-large's shape, bfloat16",
            "columns": ["", "ms", "of the frozen model's"],
            "rows": [[n, ms, step["of_frozen"][n]] for n, ms in step["ms"].items()] if "ms" in step else [],
            "note": "" if "ms" in step else f"Ours is off by {step['errors']['ours']:.1e}: no times.",
        },
        {
            "title": "Mixing and averaging",
            "columns": ["", "us", "of the byte floor", "of eager"],
            "rows": ops_rows,
        },
        {
            "title": "The routed adapter alone, and the overhead of a whole layer; microseconds",
            "columns": [
                *"NdrT",
                *(f"{mode}{of}" for mode in ("forward", "backward") for of in ("", " / floor", " / cuBLAS")),
                *(f"layer, {mode}{of}" for mode in ("forward", "train") for of in ("", " / Poly")),
            ],
            "rows": shape_rows,
            "note": f"{len(shape_rows)} of {record['shapes_of_grid']} shapes in the time there was.",
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--device", default="cuda", help="cpu only tries the script")
    parser.add_argument("--quick", action="store_true", help="small shapes")
    parser.add_argument("--minutes", type=float, default=4.0, help="shapes that do not fit are left out")
    options = parser.parse_args()
    quick, end = options.quick, time.monotonic() + 60 * options.minutes
    timer = Timer(options.device, 3 if quick else 11)
    found = rates(timer, 256 if quick else 8192)
    bandwidth = found["copy_gb_per_s"]
    about = {**machine(), **{name: round(rate, 1) for name, rate in found.items()}}
    about["cuda_kernels"] = sorted(n for n, devices in native_ops().items() if "cuda" in devices)
    if options.device == "cuda":
        about |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    print(about, flush=True)
    step = training_step(timer, Setting(32, 1, 2, 64, 8, 6, 3, options.device) if quick else T5_LARGE)
    print(step, flush=True)
    rows = [
        mixing(timer, bandwidth, *((3, 64, 4, 2) if quick else (144, 1024, 16, 8))),
        averaging(timer, bandwidth, 8, 1000 if quick else 100 << 20),
    ]
    print(rows, flush=True)
    axes = ((64, 128), (64,), (1, 4), (1, 8)) if quick else (TOKENS, WIDTHS, RANKS, TASKS)
    # The shape of the targets first, then those around it: what time cuts off is what matters least.
    shapes = sorted(
        itertools.product(*axes), key=lambda shape: sum(a != b for a, b in zip(shape, COMPILED, strict=True))
    )
    measured = []
    for shape in shapes:
        if time.monotonic() > end:
            break
        measured.append({"adapter": adapter(timer, bandwidth, *shape), "layer": layer(timer, *shape)})
        print(shape, measured[-1], flush=True)
    record: Row = {
        "benchmark": "gpu",
        "command": "make gpu-check",
        "machine": about,
        "step": step,
        "mixing": rows,
        "shapes": measured,
        "shapes_of_grid": len(shapes),
    }
    record["tables"] = tables(record)
    save(record, options.output, {})


if __name__ == "__main__":
    main()
