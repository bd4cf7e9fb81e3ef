"""Host time of the CUDA ops, without launches:  MHR_NATIVE=0 OMP_NUM_THREADS=1 python -m tests.emulation.stub.host_time

Thread CPU time of a chain of 32 layers of one token and 64 features, forward and one backward pass, divided by 32: checks,
allocations, autograd's nodes and what launching costs before the runtime, which here only records. The frozen linear's own
time, which is in that of each, stands beside it. Medians over passes that take turns.
"""

from __future__ import annotations

import gc
import importlib
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import mhr.ops
from mhr.ops import native, routed_bottleneck, routed_linear
from mhr.ops.autograd import apply
from mhr.ops.routed_linear import _RoutedLinear
from tests.emulation.stub.library import Stub, build_stub, missing_tools

LAYERS, WIDTH, RANK, SKILLS, PASSES = 32, 64, 4, 8, 200


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def chain(step: Callable[..., Tensor], *shapes: tuple[int, ...]) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """All layers, one after the other, and what has a gradient."""
    x = leaf(1, 1, WIDTH)
    layers = [[leaf(*shape) for shape in shapes] for _ in range(LAYERS)]

    def forward() -> Tensor:
        y = x
        for parameters in layers:
            y = step(y, *parameters)
        return y

    return forward, [x, *(p for parameters in layers for p in parameters)]


def times(forward: Callable[[], Tensor], leaves: list[Tensor], stub: Stub) -> tuple[float, float]:
    stub.restart()
    start = time.thread_time_ns()
    y = forward()
    middle = time.thread_time_ns()
    torch.autograd.grad(y, leaves, torch.ones_like(y))
    end = time.thread_time_ns()
    return (middle - start) / 1e3 / LAYERS, (end - middle) / 1e3 / LAYERS


def main() -> None:
    if reason := missing_tools():
        sys.exit(reason)
    if mhr.ops.build_info():
        sys.exit("the CPU's own kernels are loaded: set MHR_NATIVE=0")
    stub = Stub(build_stub())
    native.nodes = importlib.import_module("mhr._autograd")
    weight, rows = torch.randn(WIDTH, WIDTH) / 8, torch.zeros(1, dtype=torch.int64)
    a, b, w = (1, SKILLS, WIDTH, RANK), (1, SKILLS, RANK, WIDTH), (1, 1, SKILLS)
    bias_a, bias_b = (1, SKILLS, 1, RANK), (1, SKILLS, 1, WIDTH)
    cases = {
        "frozen linear": chain(lambda x: F.linear(x, weight)),
        "routed_linear, mixing": chain(lambda x, a, b, w: routed_linear(x, weight, None, a, b, w, rows), a, b, w),
        "routed_linear of factors mixed before": chain(
            # Not by routed_linear, which mixes them once more on what it takes for a CPU.
            lambda x, a, b: apply(_RoutedLinear, x, weight, None, a, b, None, None, rows, None, None, 1.0, False),
            a[1:],
            b[1:],
        ),
        "routed_bottleneck, mixing": chain(
            lambda x, a, down, b, up, w: routed_bottleneck(x, a, down, b, up, w, rows), a, bias_a, b, bias_b, w
        ),
    }
    gc.disable()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(PASSES):
        for name, (forward, leaves) in cases.items():
            found[name].append(times(forward, leaves, stub))
    print(f"{'microseconds a layer':40} forward  backward  together")
    for name, passes in found.items():
        forward_us, backward_us = (statistics.median(p[i] for p in passes) for i in (0, 1))
        print(f"{name:40} {forward_us:7.1f}  {backward_us:8.1f}  {forward_us + backward_us:8.1f}")


if __name__ == "__main__":
    main()
