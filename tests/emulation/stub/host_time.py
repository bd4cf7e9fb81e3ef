"""Host time of the CUDA ops, without launches:  MHR_NATIVE=0 OMP_NUM_THREADS=1 python -m tests.emulation.stub.host_time

Thread CPU time of a chain of 32 layers of one token and 64 features, forward and one backward pass, divided by 32: checks,
allocations, autograd's nodes and what launching costs before the runtime, which here only records. Passes of all cases take turns,
and the least of each counts: whatever else the machine does only adds to it. What is ours is the difference from the frozen
linear's own time.
"""

from __future__ import annotations

import gc
import importlib
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import mhr.ops
from mhr.ops import native, routed_bottleneck, routed_linear, routed_linears
from mhr.ops.autograd import apply
from mhr.ops.routed_linear import _RoutedLinear
from tests.emulation.stub.library import Stub, build_stub, missing_tools

LAYERS, WIDTH, RANK, SKILLS, PASSES = 32, 64, 4, 8, 200


Case = tuple[Callable[[], Tensor], list[Tensor]]


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def chain(step: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Case:
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
    factors = (1, WIDTH, 3 * RANK), *[b[1:]] * 3
    groups = {
        "frozen linear": chain(lambda x: sum_of([F.linear(x, weight) for _ in range(3)])),
        "routed_linears of factors mixed before": chain(
            lambda x, a, *b: sum_of(routed_linears(x, [weight] * 3, [None] * 3, a, b, rows)), *factors
        ),
    }
    gc.disable()
    report(fastest(cases, 1, stub))
    print("three layers that read the same x, for each of them, with the sum of their outputs")
    report(fastest(groups, 3, stub))


def sum_of(outputs: list[Tensor]) -> Tensor:
    return outputs[0] + outputs[1] + outputs[2]


def fastest(cases: dict[str, Case], layers: int, stub: Stub) -> dict[str, tuple[float, float]]:
    """Microseconds of a layer, forward and backward, where a step of a case is so many layers."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(PASSES):
        for name, (forward, leaves) in cases.items():
            found[name].append(times(forward, leaves, stub))
    return {n: (min(f for f, _ in passes) / layers, min(b for _, b in passes) / layers) for n, passes in found.items()}


def report(found: dict[str, tuple[float, float]]) -> None:
    print(f"{'microseconds a layer':40} forward  backward  together  beyond the frozen linear")
    frozen = sum(found["frozen linear"])
    for name, (forward, backward) in found.items():
        beyond = "" if name == "frozen linear" else f"{forward + backward - frozen:8.1f}"
        print(f"{name:40} {forward:7.1f}  {backward:8.1f}  {forward + backward:8.1f}  {beyond}")


if __name__ == "__main__":
    main()
