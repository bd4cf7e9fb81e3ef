"""routed_linears is routed_linear, layer by layer, with the factors A side by side."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mhr.ops import mix, routed_linears
from mhr.ops.autograd import apply
from mhr.ops.routed_linears import _adapter_first, _RoutedLinears
from tests.helpers import DTYPES, assert_close
from tests.ops.cases import LAYOUTS, Layout, adapter_formula, double, strided, values, with_gradients

EQUAL, RAGGED = LAYOUTS[1], LAYOUTS[2]
# I, then (O, R) of each layer
SIZES = (
    (9, (8, 1), (16, 1)),
    (65, (31, 4), (8, 3), (130, 1)),
    (64, (128, 4), (64, 4), (64, 4)),
    (129, (192, 16), (40, 16), (40, 16)),
    (192, (66, 33), (260, 48)),
    (
        40,
        (24, 70),
    ),
)


def inputs(
    layout: Layout, size: tuple, dtype: torch.dtype, factor_dtype: torch.dtype | None = None
) -> dict[str, Tensor]:  # type: ignore[type-arg]
    n_in, *each = size
    factor_dtype = factor_dtype or dtype
    found = {
        "x": values(*layout.leading, n_in, dtype=dtype),
        "A": values(layout.n_rows, n_in, sum(r for _, r in each), dtype=factor_dtype, spread=n_in**-0.5),
    }
    for i, (n_out, rank) in enumerate(each):
        found[f"weight{i}"] = values(n_out, n_in, dtype=dtype, spread=n_in**-0.5)
        if i != 1:
            found[f"bias{i}"] = values(n_out, dtype=dtype)
        found[f"B{i}"] = values(layout.n_rows, rank, n_out, dtype=factor_dtype, spread=rank**-0.5)
    return found


def by_kind(tensors: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor | None], list[Tensor]]:
    numbers = range(sum(name.startswith("B") for name in tensors))
    return (
        [tensors[f"weight{i}"] for i in numbers],
        [tensors.get(f"bias{i}") for i in numbers],
        [tensors[f"B{i}"] for i in numbers],
    )


def ours(layout: Layout, rows_b: Tensor | None = None):  # type: ignore[no-untyped-def]
    rows, offsets = layout.tensors()

    def function(**tensors: Tensor) -> list[Tensor]:
        weights, biases, B = by_kind(tensors)
        return routed_linears(tensors["x"], weights, biases, tensors["A"], B, rows, 0.7, rows_b=rows_b, offsets=offsets)

    return function


def adapter_first(layout: Layout):  # type: ignore[no-untyped-def]
    """The form of large products on CUDA: outputs are written by the adapter, the frozen products are added to them."""
    rows, offsets = layout.tensors()

    def function(**tensors: Tensor) -> list[Tensor]:
        weights, biases, B = by_kind(tensors)
        more = *weights, *biases, *B
        return list(apply(_RoutedLinears, tensors["x"], tensors["A"], rows, None, offsets, 0.7, True, *more))

    return function


def formula(layout: Layout, turned: bool = False):  # type: ignore[no-untyped-def]
    tokens = layout.row_of_token()
    tokens_b = layout.n_rows - 1 - tokens if turned else tokens

    def function(**tensors: Tensor) -> list[Tensor]:
        weights, biases, B = by_kind(tensors)
        x, factors = tensors["x"], tensors["A"].split([b.shape[1] for b in B], -1)
        return [
            adapter_formula(F.linear(x, w, c), x, a, b, tokens, tokens_b, 0.7)
            for w, c, a, b in zip(weights, biases, factors, B, strict=True)
        ]

    return function


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda case: case.name)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_accuracy(size: tuple, layout: Layout, dtype: torch.dtype) -> None:  # type: ignore[type-arg]
    given = inputs(layout, size, dtype)
    truth, plain = with_gradients(formula(layout), double(given)), with_gradients(formula(layout), given)
    for function in (ours(layout), adapter_first(layout)):
        assert_close(with_gradients(function, given), truth, dtype, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accuracy_with_rows_of_its_own_for_b(dtype: torch.dtype) -> None:
    given = inputs(RAGGED, SIZES[1], dtype)
    rows, _ = RAGGED.tensors()
    found = with_gradients(ours(RAGGED, RAGGED.n_rows - 1 - rows), given)
    assert_close(found, with_gradients(formula(RAGGED, turned=True), double(given)), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_accuracy_with_float32_factors(dtype: torch.dtype) -> None:
    given = inputs(RAGGED, SIZES[3], dtype, torch.float32)
    assert_close(with_gradients(ours(RAGGED), given), with_gradients(formula(RAGGED), double(given)), dtype)


def test_segments_without_an_adapter_have_the_frozen_product_alone() -> None:
    given = inputs(EQUAL, SIZES[2], torch.float32)
    weights, biases, B = by_kind(given)
    rows = torch.tensor([-1, 1, -1])
    for y, w, c in zip(routed_linears(given["x"], weights, biases, given["A"], B, rows), weights, biases, strict=True):
        frozen = F.linear(given["x"], w, c)
        torch.testing.assert_close(y[[0, 2]], frozen[[0, 2]])
        assert not torch.allclose(y[1], frozen[1])


def test_outputs_that_nothing_is_made_of_count_as_zeros() -> None:
    given = {n: t.requires_grad_() for n, t in inputs(RAGGED, SIZES[1], torch.float64).items()}
    names = [name for name in given if name != "bias1"]

    def gradients(function) -> list[Tensor]:  # type: ignore[no-untyped-def]
        y = function(**given)[2]
        found = torch.autograd.grad(y.square().sum(), list(given.values()), allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for g, t in zip(found, given.values(), strict=True)]

    for name, got, expected in zip(names, gradients(ours(RAGGED)), gradients(formula(RAGGED)), strict=True):
        torch.testing.assert_close(got, expected, msg=lambda m, name=name: f"{name}: {m}")


def test_non_contiguous_inputs() -> None:
    given = inputs(RAGGED, SIZES[1], torch.float32)

    def apart(**tensors: Tensor) -> list[Tensor]:
        return ours(RAGGED)(**{name: strided(t) for name, t in tensors.items()})

    assert_close(with_gradients(apart, given), with_gradients(formula(RAGGED), double(given)), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("begin", "width"), [(0, 8), (0, 32), (0, 19), (4, 24), (8, 24), (8, 16), (1, 16), (2, 40)])
@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_a_as_columns_of_a_wider_tensor(size: tuple, begin: int, width: int, dtype: torch.dtype) -> None:  # type: ignore[type-arg]
    """Wherever they begin, and whatever is in the others."""
    given = inputs(RAGGED, size, dtype)
    end = begin + given["A"].shape[-1]
    whole = torch.full((*given["A"].shape[:2], width), torch.nan, dtype=dtype)
    whole[..., begin:end] = given["A"]

    def within(A: Tensor, **tensors: Tensor) -> list[Tensor]:
        return ours(RAGGED)(A=A[..., begin:end], **tensors)

    found, truth = with_gradients(within, given | {"A": whole}), with_gradients(formula(RAGGED), double(given))
    found["dA"] = found["dA"][..., begin:end]
    assert_close(found, truth, dtype)


def test_what_fills_a_row_is_taken_for_zeros_where_mix_made_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of CUDA read it; on the CPU the same A reaches the node."""
    seen: list[Tensor] = []
    monkeypatch.setattr(
        importlib.import_module("mhr.ops.routed_linears"), "apply", lambda _, x, A, *more: seen.append(A) or (x,)
    )

    def reaches(A: Tensor) -> Tensor:
        routed_linears(torch.randn(1, 8), [torch.randn(5, 8)], [None], A, [torch.randn(2, 3, 5)], torch.tensor([0]))
        return seen.pop()

    def mixed() -> Tensor:
        banks, weights = [torch.randn(2, 3, 4, r) for r in (1, 2)], [torch.rand(2, 2, 3)] * 2
        return mix(banks, weights, [1, 1], runs=[2])[0]

    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            A = mixed()
            assert A.stride(1) == 4
            assert reaches(A) is A
            slices = torch.full((2, 8, 4), torch.nan)[..., :3], torch.randn(2, 8, 4).detach()[..., :3]
            for other in (*slices, slices[0].detach(), slices[0].data, torch.nn.Parameter(slices[0])):
                assert reaches(other).is_contiguous()
    with torch.inference_mode():
        A = mixed()
        assert reaches(A) is A
        assert reaches(torch.full((2, 8, 4), torch.nan)[..., :3]).is_contiguous()


def test_gradcheck() -> None:
    given = inputs(RAGGED, (4, (6, 2), (3, 1)), torch.float64)
    leaves = tuple(t.requires_grad_() for t in given.values())
    function = ours(RAGGED)
    assert torch.autograd.gradcheck(
        lambda *t: tuple(function(**dict(zip(given, t, strict=True)))), leaves, fast_mode=True
    )


def test_x_is_kept_once_beside_the_activations_of_the_ranks() -> None:
    given = inputs(EQUAL, SIZES[2], torch.float32)
    for name in given:
        given[name].requires_grad_(name[0] in "AB")
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ys = ours(EQUAL)(**given)
    known = {t.data_ptr() for t in given.values()}
    beyond = [tuple(t.shape) for t in kept if t.data_ptr() not in known and t.is_floating_point()]
    assert beyond == [(15, 12)]
    assert sum(t.data_ptr() == given["x"].data_ptr() for t in kept) == 1
    sum(y.sum() for y in ys).backward()
    assert given["weight0"].grad is None


def test_opcheck() -> None:
    given = inputs(RAGGED, (8, (6, 2), (5, 3)), torch.float32)
    rows, offsets = RAGGED.tensors()
    weights, biases, B = by_kind(given)
    x, A = given["x"], given["A"]
    ys = [F.linear(x, w, c) for w, c in zip(weights, biases, strict=True)]
    args = (ys, x, [None, None], A, B, rows, None, offsets, 0.7, True)
    torch.library.opcheck(torch.ops.mhr.routed_linears_forward.default, args)
    h = torch.ops.mhr.routed_linears_forward(*args)
    for dx, add in ((torch.zeros_like(x), True), (torch.zeros_like(x), False), (None, True)):
        d_b = [torch.zeros_like(b) for b in B]
        backward = (dx, d_b, [torch.randn_like(y) for y in ys], x, h, A, B, rows, None, offsets, 0.7, add)
        torch.library.opcheck(torch.ops.mhr.routed_linears_backward.default, backward)


def test_compiles_without_graph_breaks(backend: str) -> None:
    given = inputs(RAGGED, (8, (6, 2), (5, 3)), torch.float32)

    def function(**tensors: Tensor) -> list[Tensor]:
        return [y.square() for y in ours(RAGGED)(**tensors)]

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert_close(with_gradients(compiled, given), with_gradients(function, given), torch.float32)


def test_autocast_computes_in_its_dtype_and_returns_gradients_in_theirs() -> None:
    given = {n: t.requires_grad_() for n, t in inputs(EQUAL, SIZES[1], torch.float32).items()}
    with torch.autocast(given["x"].device.type, torch.bfloat16):
        found = ours(EQUAL)(**given)
    assert {y.dtype for y in found} == {torch.bfloat16}
    sum(y.float().sum() for y in found).backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in given.values())


def test_the_products_come_last_where_arithmetic_bounds_them() -> None:
    for n, n_in, n_out, first in ((8192, 4096, 4096, True), (64, 4096, 4096, False), (8192, 256, 256, False)):
        x = torch.empty(n, n_in, dtype=torch.bfloat16, device="meta")
        assert _adapter_first(x, [torch.empty(n_out, n_in, device="meta")] * 3) == first, (n, n_in, n_out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": torch.randn(4, 65, 9)}, "A has rank 9, the factors B together 8"),
        ({"A": torch.randn(4, 64, 8)}, "x must have I = 64 columns"),
        ({"B0": torch.randn(4, 31)}, r"B.* must have shape \(U, R, O\), got .4, 31."),
        ({"rows": torch.tensor([0, 1, 4])}, r"rows must lie in 0\.\.3"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, Tensor], message: str) -> None:
    given = inputs(EQUAL, SIZES[1], torch.float32) | change
    weights, biases, B = by_kind(given)
    rows = given.get("rows", EQUAL.tensors()[0])
    with pytest.raises(RuntimeError, match=message):
        routed_linears(given["x"], weights, biases, given["A"], B, rows)


def test_refuses_lists_of_different_lengths() -> None:
    with pytest.raises(RuntimeError, match="got 2 weights, 1 biases and 0 factors B"):
        routed_linears(torch.randn(2, 4), [torch.randn(3, 4)] * 2, [None], torch.randn(1, 4, 2), [], torch.tensor([0]))


def test_refuses_vmap_and_second_derivatives() -> None:
    given = inputs(EQUAL, SIZES[1], torch.float32)
    with pytest.raises(RuntimeError, match="mhr::routed_linears does not support torch.func"):
        torch.func.vmap(lambda x: ours(EQUAL)(**{**given, "x": x}))(torch.randn(2, 3, 5, 65))
    leaves = {n: t.requires_grad_() for n, t in given.items()}
    (dx,) = torch.autograd.grad(ours(EQUAL)(**leaves)[0].sum(), leaves["x"], create_graph=False)
    assert not dx.requires_grad
    with pytest.raises(RuntimeError, match="routed_linears is differentiable once"):
        torch.autograd.grad(ours(EQUAL)(**leaves)[0].sum(), leaves["x"], create_graph=True)
