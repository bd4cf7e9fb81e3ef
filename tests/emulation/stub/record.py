"""Calls every CUDA op on the stub and prints what each would have launched, as JSON:  python -m tests.emulation.stub.record STUB.so

For a process of MHR_NATIVE=0. Tensors are allocated and never touched, so that sizes may be those of a large GPU.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mhr.ops
from tests.emulation.stub.library import Record, Stub

ops = torch.ops.mhr
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Sizes:
    """N tokens in G segments (equal ones without `ragged`), I in, O out, rank R, U rows of factors, H heads, S skills."""

    n: int
    g: int
    i: int
    o: int
    r: int
    u: int = 3
    h: int = 2
    s: int = 4
    dtype: torch.dtype = BF16
    ragged: bool = True


GROUP = 3  # layers that read the same x
SIZES = (
    Sizes(1, 1, 64, 64, 4, ragged=False),
    Sizes(1000, 7, 512, 1024, 1),
    Sizes(1000, 8, 512, 1024, 16, ragged=False),
    Sizes(8192, 8, 4096, 4096, 16),
    Sizes(8192, 64, 4096, 4096, 32, dtype=FP16),
    Sizes(2048, 64, 8192, 1024, 64),
    Sizes(300, 5, 520, 136, 300),
    Sizes(4096, 16, 1024, 4096, 16, dtype=FP32),
    Sizes(1 << 20, 300, 1024, 1024, 64),
    Sizes(512, 64, 1024, 2048, 16, ragged=False),
)


def calls(z: Sizes) -> Iterator[tuple[str, Callable[[], Any]]]:
    def empty(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    x, y, dy, dx = (empty(z.n, width, dtype=z.dtype) for width in (z.i, z.o, z.o, z.i))
    hidden, a, b = empty(z.n, z.r), empty(z.u, z.i, z.r, dtype=z.dtype), empty(z.u, z.r, z.o, dtype=z.dtype)
    rows = torch.zeros(z.g, dtype=torch.int64)
    offsets = torch.zeros(z.g + 1, dtype=torch.int64) if z.ragged else None
    forward = rows, None, offsets, None, None, "none", 1.0
    yield "routed_adapter_forward", lambda: ops.routed_adapter_forward(y, x, a, b, *forward)
    pass_dy = rows, offsets, "none", 1.0, False
    yield "routed_adapter_backward_dy", lambda: ops.routed_adapter_backward_dy(dy, hidden, b, *pass_dy)
    pass_x = rows, offsets, True, False
    yield "routed_adapter_backward_x", lambda: ops.routed_adapter_backward_x(dx, x, hidden, a, *pass_x)
    bank_a, bank_b, w = empty(z.h, z.s, z.i // z.h, z.r), empty(z.h, z.s, z.r, z.o // z.h), empty(z.u, z.h, z.s)
    banks = bank_a, bank_b, w, None, rows, None, offsets
    yield "routed_linear_forward", lambda: ops.routed_linear_forward(y, x, None, *banks, 1.0, True)
    yield "routed_linear_backward", lambda: ops.routed_linear_backward(dx, dy, x, hidden, *banks, 1.0, True)
    factors = a, b, None, None, rows, None, offsets
    yield "routed_linear_forward of factors", lambda: ops.routed_linear_forward(y, x, None, *factors, 1.0, False)
    back = dx, dy, x, hidden
    yield "routed_linear_backward of factors", lambda: ops.routed_linear_backward(*back, *factors, 1.0, False)
    wide = empty(z.h, z.s, z.r, z.i // z.h)
    parts = bank_a, empty(z.h, z.s, 1, z.r), wide, empty(z.h, z.s, 1, z.i // z.h), w, None, rows, None, offsets
    yield "routed_bottleneck_forward", lambda: ops.routed_bottleneck_forward(x, *parts)
    yield "routed_bottleneck_backward", lambda: ops.routed_bottleneck_backward(dx, x, hidden, *parts, True)


def group_calls(z: Sizes) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Of three layers that read the same x; `z.r` are their ranks together."""
    each = z.r // GROUP
    x, dx, hidden = torch.empty(z.n, z.i, dtype=z.dtype), torch.empty(z.n, z.i, dtype=z.dtype), torch.empty(z.n, z.r)
    wide = [torch.empty(z.n, z.o, dtype=z.dtype) for _ in range(GROUP)]
    a = torch.empty(z.u, z.i, -(-z.r // 8) * 8, dtype=z.dtype)[..., : z.r]  # as mix leaves it
    b = [torch.empty(z.u, each, z.o, dtype=z.dtype) for _ in range(GROUP)]
    d_b = [torch.empty(z.u, each, z.o) for _ in range(GROUP)]
    rows = torch.zeros(z.g, dtype=torch.int64)
    factors = a, b, rows, None, torch.zeros(z.g + 1, dtype=torch.int64) if z.ragged else None
    yield "routed_linears_forward", lambda: ops.routed_linears_forward(wide, x, [None] * GROUP, *factors, 1.0, False)
    yield (
        "routed_linears_backward",
        lambda: ops.routed_linears_backward(dx, d_b, wide, x, hidden, *factors, 1.0, False),
    )


def small_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    n = 100
    banks, weights = [torch.empty(2, 8, 64, 16) for _ in range(n)], [torch.empty(3, 2, 8) for _ in range(n)]
    grads = [torch.empty(3, 128, 16) for _ in range(n)]
    yield "mix", lambda: ops.mix(banks, weights, [1] * n, None)
    rooms, runs = [torch.empty(3, 128, 4 * 16) for _ in range(n // 4)], [4] * (n // 4)
    yield "mix_beside", lambda: ops.mix_beside(rooms, banks, weights, [1] * n, runs)
    yield "mix_backward", lambda: ops.mix_backward(grads, banks, weights, list(range(n)), [1] * n, True, True)
    shared = grads, banks, weights[:1], [0] * n, [1] * n, True, True
    yield "mix_backward of shared weights", lambda: ops.mix_backward(*shared)
    logits, tasks = [torch.empty(50, 8, 8) for _ in range(n)], torch.zeros(3, dtype=torch.int64)
    dw = [torch.empty(3, 8, 8) for _ in range(n)]
    yield "route", lambda: ops.route(logits[0], tasks, None, 1.0)
    yield "route_backward", lambda: ops.route_backward(dw[0], logits[0], tasks, None, 1.0)
    yield "route_all", lambda: ops.route_all(logits, tasks, None, 1.0)
    yield "route_all_backward", lambda: ops.route_all_backward(dw, logits, tasks, None, 1.0)
    tensors = [torch.empty(100_003) for _ in range(300)]
    yield "weighted_average", lambda: ops.weighted_average(torch.empty_like(tensors[0]), tensors, [0.5] * 300)
    yield "weighted_average of one", lambda: ops.weighted_average(torch.empty_like(tensors[0]), tensors[:1], [1.0])


def record(stub: Stub) -> list[dict[str, Any]]:
    found = []
    each = [(z, call) for z in SIZES for call in calls(z)]
    together = [dataclasses.replace(z, r=GROUP * z.r) for z in SIZES]
    each += [(z, call) for z in together for call in group_calls(z)]
    for sizes, (name, call) in each:
        with stub.recording() as records:
            call()
        found.append({"name": name, "sizes": dataclasses.asdict(sizes), "records": records})
    for name, call in small_calls():
        with stub.recording() as records:
            call()
        found.append({"name": name, "sizes": None, "records": records})
    return found


def plain(value: Any) -> Any:
    return dataclasses.asdict(value) if isinstance(value, Record) else str(value)


if __name__ == "__main__":
    assert not mhr.ops.build_info(), "the CPU's own kernels are loaded: set MHR_NATIVE=0"
    print(json.dumps(record(Stub(Path(sys.argv[1]))), default=plain))
