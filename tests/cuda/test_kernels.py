"""The native CUDA ops on this GPU: the emulator's cases and bounds, repeatability, sizes beyond 32 bits.

Streams, graphs and compilers: tests/ops, which run on the GPU too. Where there is none, what needs no more than the ops is run on the
emulated kernels (tests/emulation/test_ops_suite.py).
"""

from __future__ import annotations

import pytest
import torch

from mhr.ops import mix, native_ops, route, weighted_average
from tests.emulation.adapter_cases import BF16, CASES, FP32, Case, Problem, assert_float32_accuracy
from tests.emulation.bounds import Bounded, product, worst
from tests.emulation.test_mix import ITEMS, SUMS

ops = torch.ops.mhr
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A tensor of its own: an op may write into it."""
    return None if tensor is None else tensor.to(DEVICE, copy=True)


def results(problem: Problem) -> list[list[torch.Tensor]]:
    case = problem.case
    offsets = None if case.equal_segments else on_device(problem.offsets)
    activation = "gelu" if case.bottleneck else "none"
    rows_a, rows_b = on_device(problem.rows_a), on_device(problem.rows_b)
    y = problem.y
    if case.overwrite:  # the op adds to its y: it is given what the launch would begin with
        y = torch.zeros_like(y) if problem.base is None else problem.base.expand_as(y).contiguous()
    x, y, dy, dx, a, b = (on_device(t) for t in (problem.x, y, problem.dy, problem.dx, problem.a, problem.b))
    biases = (on_device(problem.bias_a), on_device(problem.bias_b))
    z = ops.routed_adapter_forward(y, x, a, b, rows_a, rows_b, offsets, *biases, activation, problem.scale)
    saved, given, bias = on_device(problem.z), on_device(problem.dz), case.bottleneck
    dz, db, dbias_b = ops.routed_adapter_backward_dy(dy, saved, b, rows_b, offsets, activation, problem.scale, bias)
    da, dbias_a = ops.routed_adapter_backward_x(dx, x, given, a, rows_a, offsets, not case.overwrite, bias)
    return [[y, z], [dz, db, *([dbias_b] if bias else [])], [dx, da, *([dbias_a] if bias else [])]]


def test_the_kernels_are_native() -> None:
    for name in ("mix", "mix_backward", "route", "route_backward", "routed_adapter_forward", "weighted_average"):
        assert "cuda" in native_ops()[name], "the extension was built without CUDA: MHR_CUDA=1 demands it"


@pytest.mark.parametrize("case", [c for c in CASES if not c.shift], ids=str)
def test_routed_adapter_matches_float64(case: Case) -> None:
    problem = Problem(case)
    first, again = results(problem), results(problem)
    for names, outputs, repeated in zip(problem.expected(), first, again, strict=True):
        for (name, bound), actual, other in zip(names.items(), outputs, repeated, strict=True):
            assert worst(actual.cpu(), bound) <= 1, name
            assert torch.equal(actual, other), f"{name} differs from run to run"


def test_float32_stays_float32_in_long_sums() -> None:
    problem = Problem(
        Case((6000, 2192), 4096, 1024, 16, FP32)
    )  # so many tokens that no block shares its sums with others
    assert_float32_accuracy(problem, results(problem))


@pytest.mark.parametrize("case", CASES[2:5], ids=str)
def test_sanitizer_case(case: Case) -> None:
    """Few launches, for compute-sanitizer."""
    results(Problem(case))
    torch.cuda.synchronize()


def test_sanitizer_case_of_the_other_ops() -> None:
    logits, tasks = torch.randn(3, 4, 6, device="cuda", requires_grad=True), torch.tensor([2, -1, 0], device="cuda")
    banks = [torch.randn(4, 6, 17, 5, device="cuda", requires_grad=True) for _ in range(2)]
    w = route(logits, tasks)
    factors = mix(banks, [w, w], [1, 2])
    torch.autograd.grad(sum(f.square().sum() for f in factors), [logits, *banks])
    weighted_average([torch.randn(1003, device="cuda") for _ in range(3)], [0.5, 0.25, 0.25])
    torch.cuda.synchronize()


def test_more_than_two_to_the_31_elements() -> None:
    """The last tokens of tensors whose element numbers no int32 holds, against float64."""
    n, d, rank, last = (1 << 19) + 300, 4096, 16, 100
    assert (n - last) * d > 1 << 31
    if torch.cuda.mem_get_info()[0] < 6 * n * d * 2:
        pytest.skip(f"needs {6 * n * d * 2 >> 30} GiB of free device memory")

    def normal(*shape: int, spread: float = 1.0) -> torch.Tensor:
        return torch.empty(shape, device="cuda", dtype=BF16).normal_(std=spread)

    x, y, dy, dx = (normal(n, d) for _ in range(4))
    a, b = normal(2, d, rank, spread=d**-0.5), normal(2, rank, d, spread=rank**-0.5)
    rows, offsets = torch.tensor([0, 1], device="cuda"), torch.tensor([0, n - last, n], device="cuda")
    end = slice(n - last, n)
    xs, ys, dys, dxs, (_, a1), (_, b1) = (t.double() for t in (x[end], y[end], dy[end], dx[end], a, b))
    dz = dys @ b1.T
    expected = {
        "y": ys + xs @ a1 @ b1,
        "dx": dxs + dz @ a1.T,
        "dA": xs.T @ dz,
        "dB": (xs @ a1).T @ dys,
    }
    z = ops.routed_adapter_forward(y, x, a, b, rows, None, offsets, None, None, "none", 1.0)
    dz, db, _ = ops.routed_adapter_backward_dy(dy, z, b, rows, offsets, "none", 1.0, False)
    da, _ = ops.routed_adapter_backward_x(dx, x, dz, a, rows, offsets, True, False)
    for (name, truth), found in zip(expected.items(), (y[end], dx[end], da[1], db[1]), strict=True):
        error = (found.double() - truth).square().mean().sqrt() / truth.square().mean().sqrt()
        assert error < 1e-2, f"{name} is off by {error:.1e}"


def test_many_blocks_match_float64() -> None:
    problem = Problem(Case((3000, 1, 0, 2500, 700), 1024, 1536, 16))
    for names, outputs in zip(problem.expected(), results(problem), strict=True):
        for (name, bound), actual in zip(names.items(), outputs, strict=True):
            assert worst(actual.cpu(), bound) <= 1, name


def test_mix_matches_float64() -> None:
    items = [item for item in ITEMS if item.bank_dtype == torch.float32]
    tensors = [[t.to(DEVICE) for t in item.tensors()] for item in items]
    banks, weights = [t[0] for t in tensors], [t[1] for t in tensors]
    head_dims = [item.head_dim for item in items]
    for item, (bank, w, _), factor in zip(items, tensors, ops.mix(banks, weights, head_dims, BF16), strict=True):
        sums = product(Bounded.exact(w.cpu().transpose(0, 1)), Bounded.exact(bank.cpu().flatten(2)), SUMS)
        assert worst(item.split(factor.cpu()), sums.rounded(BF16)) <= 1, item
    grads = ops.mix_backward([t[2] for t in tensors], banks, weights, list(range(len(banks))), head_dims, True, True)
    for item, (bank, w, grad), d_bank, d_weights in zip(
        items, tensors, grads[: len(items)], grads[len(items) :], strict=True
    ):
        pieces = Bounded.exact(item.split(grad.cpu()))
        sums = product(Bounded.exact(w.cpu().permute(1, 2, 0)), pieces, SUMS)
        assert worst(d_bank.cpu().flatten(2), sums.rounded(FP32)) <= 1, item
        dots = product(pieces, Bounded.exact(bank.cpu().flatten(2)).mT, SUMS)
        assert worst(d_weights.cpu().transpose(0, 1), dots) <= 1, item


@pytest.mark.parametrize("dtype", [BF16, torch.float16, FP32, torch.float64], ids=str)
def test_weighted_average_matches_float64(dtype: torch.dtype) -> None:
    tensors = [torch.randn(100_003, dtype=torch.float64, device=DEVICE).to(dtype) for _ in range(5)]
    weights = [0.5, 0.25, 0.125, 0.0625, 0.0625]
    expected = sum(w * t.double() for w, t in zip(weights, tensors, strict=True))
    torch.testing.assert_close(weighted_average(tensors, weights), expected.to(dtype))
    assert torch.equal(weighted_average(tensors[:1], [1.0]), tensors[0])
