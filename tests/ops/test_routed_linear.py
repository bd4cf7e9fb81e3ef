from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from mhr.ops import routed_linear
from mhr.ops.autograd import apply
from mhr.ops.checks import accumulator
from mhr.ops.routed_linear import _RoutedLinear, adapter_first
from tests.helpers import DTYPES, assert_close
from tests.ops.cases import LAYOUTS, Layout, adapter_formula, double, mix_formula, strided, values, with_gradients

EQUAL, RAGGED = LAYOUTS[1], LAYOUTS[2]
# H, S, I, O, R
SIZES = ((1, 1, 1, 1, 1), (1, 8, 65, 31, 4), (8, 4, 64, 128, 3), (3, 2, 129, 192, 16), (4, 3, 8, 260, 33))


def inputs(
    layout: Layout, size: tuple[int, ...], dtype: torch.dtype, bank_dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    n_heads, n_skills, n_in, n_out, rank = size
    bank_dtype = bank_dtype or dtype
    return {
        "x": values(*layout.leading, n_in, dtype=dtype),
        "weight": values(n_out, n_in, dtype=dtype, spread=n_in**-0.5),
        "bias": values(n_out, dtype=dtype),
        "bank_a": values(n_heads, n_skills, n_in // n_heads, rank, dtype=bank_dtype, spread=n_in**-0.5),
        "bank_b": values(n_heads, n_skills, rank, n_out // n_heads, dtype=bank_dtype, spread=rank**-0.5),
        "weights": values(layout.n_rows, n_heads, n_skills, dtype=accumulator(bank_dtype)),
    }


def formula(layout: Layout, both: bool = False):  # type: ignore[no-untyped-def]
    tokens = layout.row_of_token()
    tokens_b = layout.n_rows - 1 - tokens if both else tokens

    def function(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        bank_a: Tensor,
        bank_b: Tensor,
        weights: Tensor,
        weights_b: Tensor | None = None,
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        A = mix_formula(bank_a, weights, 1)
        B = mix_formula(bank_b, weights if weights_b is None else weights_b, 2)
        return adapter_formula(y, x, A, B, tokens, tokens_b, 0.7)

    return function


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda case: case.name)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_accuracy(size: tuple[int, ...], layout: Layout, dtype: torch.dtype) -> None:
    given = inputs(layout, size, dtype)
    rows, offsets = layout.tensors()
    found = with_gradients(lambda **t: routed_linear(**t, rows=rows, scale=0.7, offsets=offsets), given)
    truth = with_gradients(formula(layout), double(given))
    assert_close(found, truth, dtype, with_gradients(formula(layout), given))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accuracy_with_weights_of_its_own_for_b(dtype: torch.dtype) -> None:
    given = inputs(RAGGED, SIZES[3], dtype)
    given["weights_b"] = torch.rand_like(given["weights"])
    rows, offsets = RAGGED.tensors()
    rows_b = RAGGED.n_rows - 1 - rows
    found = with_gradients(lambda **t: routed_linear(**t, rows=rows, scale=0.7, rows_b=rows_b, offsets=offsets), given)
    assert_close(found, with_gradients(formula(RAGGED, both=True), double(given)), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_accuracy_with_float32_banks(dtype: torch.dtype) -> None:
    given = inputs(RAGGED, SIZES[3], dtype, bank_dtype=torch.float32)
    rows, offsets = RAGGED.tensors()
    found = with_gradients(lambda **t: routed_linear(**t, rows=rows, scale=0.7, offsets=offsets), given)
    assert_close(found, with_gradients(formula(RAGGED), double(given)), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accuracy_of_factors_as_they_are(dtype: torch.dtype) -> None:
    given = inputs(RAGGED, SIZES[3], dtype)
    A, B = mix_formula(given["bank_a"], given["weights"], 1), mix_formula(given["bank_b"], given["weights"], 2)
    given = {"x": given["x"], "weight": given["weight"], "bias": given["bias"], "A": A.to(dtype), "B": B.to(dtype)}
    rows, offsets = RAGGED.tensors()
    tokens = RAGGED.row_of_token()

    def ours(A: Tensor, B: Tensor, **more: Tensor) -> Tensor:
        return routed_linear(**more, bank_a=A, bank_b=B, weights=None, rows=rows, scale=0.7, offsets=offsets)

    def formula(x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return adapter_formula(F.linear(x, weight, bias), x, A, B, tokens, tokens, 0.7)

    assert_close(with_gradients(ours, given), with_gradients(formula, double(given)), dtype)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accuracy_where_the_product_is_added_to_the_adapter(dtype: torch.dtype, biased: bool) -> None:
    """The form of CUDA, where the product is bound by arithmetic: y begins as the adapter's output and the bias."""
    given = inputs(RAGGED, SIZES[3], dtype)
    if not biased:
        del given["bias"]
    rows, offsets = RAGGED.tensors()

    def ours(
        x: Tensor, weight: Tensor, bank_a: Tensor, bank_b: Tensor, weights: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        return apply(_RoutedLinear, x, weight, bias, bank_a, bank_b, weights, None, rows, None, offsets, 0.7, True)

    def truth(**t: Tensor) -> Tensor:
        return formula(RAGGED)(**{"bias": None, **t})

    assert_close(with_gradients(ours, given), with_gradients(truth, double(given)), dtype)


def test_the_product_comes_last_where_arithmetic_bounds_it() -> None:
    """By sizes alone, so that every GPU gives the same bits."""
    for n, n_in, n_out, dtype, first in (
        (8192, 4096, 4096, torch.bfloat16, True),
        (2048, 1024, 1024, torch.bfloat16, True),
        (64, 4096, 4096, torch.bfloat16, False),
        (8192, 256, 256, torch.bfloat16, False),
    ):
        x, weight = torch.empty(n, n_in, dtype=dtype, device="meta"), torch.empty(n_out, n_in, device="meta")
        assert adapter_first(x, weight) == first, (n, n_in, n_out)


def test_one_token_without_leading_dimensions_and_without_bias() -> None:
    given = inputs(LAYOUTS[0], (2, 3, 8, 6, 2), torch.float64)
    given["x"] = given["x"][0, 0]
    del given["bias"]
    found = with_gradients(lambda **t: routed_linear(bias=None, rows=torch.tensor([1]), **t), given)
    A, B = mix_formula(given["bank_a"], given["weights"], 1)[1], mix_formula(given["bank_b"], given["weights"], 2)[1]
    torch.testing.assert_close(found["out0"], F.linear(given["x"], given["weight"]) + given["x"] @ A @ B)


def test_non_contiguous_inputs() -> None:
    given = inputs(RAGGED, (2, 3, 8, 6, 2), torch.float32)
    rows, offsets = RAGGED.tensors()
    assert offsets is not None

    def ours(**tensors: Tensor) -> Tensor:
        apart = {name: strided(t) for name, t in tensors.items()}
        return routed_linear(**apart, rows=strided(rows), scale=0.7, offsets=strided(offsets))

    assert_close(with_gradients(ours, given), with_gradients(formula(RAGGED), double(given)), torch.float32)


def test_gradcheck() -> None:
    rows, offsets = RAGGED.tensors()
    leaves = tuple(t.requires_grad_() for t in inputs(RAGGED, (2, 3, 4, 6, 2), torch.float64).values())
    assert torch.autograd.gradcheck(lambda *t: routed_linear(*t, rows, 0.7, offsets=offsets), leaves, fast_mode=True)


def test_a_frozen_linear_gets_no_gradient_and_only_the_activations_of_the_rank_are_kept() -> None:
    given = inputs(EQUAL, (2, 3, 8, 6, 2), torch.float32)
    rows, _ = EQUAL.tensors()
    for name in ("bank_a", "bank_b", "weights"):
        given[name].requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = routed_linear(**given, rows=rows)
    known = {t.data_ptr() for t in (*given.values(), rows)}
    beyond = [t for t in kept if t.data_ptr() not in known]
    assert [tuple(t.shape) for t in beyond] == [(15, 2)]
    y.sum().backward()
    assert given["weight"].grad is None
    assert given["bank_a"].grad is not None


def test_opcheck() -> None:
    given = inputs(RAGGED, (2, 3, 8, 6, 2), torch.float32)
    rows, offsets = RAGGED.tensors()
    x, weight, bias, bank_a, bank_b, weights = given.values()
    y = F.linear(x, weight, bias)
    args = (y, x, None, bank_a, bank_b, weights, None, rows, None, offsets, 0.7, True)
    torch.library.opcheck(torch.ops.mhr.routed_linear_forward.default, args)
    h = torch.ops.mhr.routed_linear_forward(*args)
    torch.library.opcheck(torch.ops.mhr.routed_linear_forward.default, (y, x, bias, *args[3:-1], False))
    for dx, weights_b, add in (
        (torch.zeros_like(x), None, True),
        (torch.zeros_like(x), None, False),
        (None, weights.clone(), True),
    ):
        backward = (dx, torch.randn_like(y), x, h, bank_a, bank_b, weights, weights_b, rows, None, offsets, 0.7, add)
        torch.library.opcheck(torch.ops.mhr.routed_linear_backward.default, backward)


def test_compiles_without_graph_breaks(backend: str) -> None:
    rows, offsets = RAGGED.tensors()
    given = inputs(RAGGED, (2, 3, 8, 6, 2), torch.float32)

    def function(**tensors: Tensor) -> Tensor:
        return routed_linear(**tensors, rows=rows, offsets=offsets).square()

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert_close(with_gradients(compiled, given), with_gradients(function, given), torch.float32)


def test_autocast_computes_in_its_dtype_and_returns_gradients_in_theirs() -> None:
    rows, _ = EQUAL.tensors()
    given = {n: t.requires_grad_() for n, t in inputs(EQUAL, (2, 3, 8, 6, 2), torch.float32).items()}
    with torch.autocast(given["x"].device.type, torch.bfloat16):
        found = routed_linear(**given, rows=rows)
        assert found.dtype == F.linear(given["x"], given["weight"]).dtype == torch.bfloat16
    found.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in given.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bank_b": torch.randn(2, 3, 3, 3)}, "bank_a has rank 2, bank_b 3"),
        ({"weights": torch.rand(4, 2, 4)}, r"weights.* must have shape \(U, H, S\) = \(4, 2, 3\), got \(4, 2, 4\)"),
        ({"bank_a": torch.randn(2, 3, 5, 2)}, "x must have I = 10 columns"),
        ({"rows": torch.tensor([0, 1, 4])}, r"rows must lie in 0\.\.3"),
        ({"weights": None}, r"without weights bank_a must have shape \(U, I, R\), got \(2, 3, 4, 2\)"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, Tensor | None], message: str) -> None:
    given = inputs(EQUAL, (2, 3, 8, 6, 2), torch.float32) | {"rows": EQUAL.tensors()[0]}
    with pytest.raises(RuntimeError, match=message):
        routed_linear(**(given | change))


@pytest.mark.parametrize(("on", "axes"), [("cuda", (1, 3)), ("cuda", (2, 3)), ("cpu", (1, 3)), ("cpu", (2, 3))])
def test_factors_of_four_axes_are_refused_before_a_kernel_sees_them(
    on: str, axes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*_: object) -> None:
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(importlib.import_module("mhr.ops.routed_linear"), "apply", called)
    with FakeTensorMode():  # of a device that need not be there
        x, weight = torch.empty(3, 8, device=on), torch.empty(6, 8, device=on)
        bank_a, bank_b = torch.empty(*axes, 8, 2, device=on), torch.empty(*axes, 2, 6, device=on)
        with pytest.raises(RuntimeError, match=r"without weights bank_a must have shape \(U, I, R\), got"):
            routed_linear(x, weight, None, bank_a, bank_b, None, torch.empty(3, dtype=torch.int64, device=on))


def test_refuses_vmap() -> None:
    given = inputs(EQUAL, (2, 3, 8, 6, 2), torch.float32)
    rows = EQUAL.tensors()[0]
    with pytest.raises(RuntimeError, match="mhr::routed_linear does not support torch.func"):
        torch.func.vmap(lambda x: routed_linear(**{**given, "x": x}, rows=rows))(torch.randn(2, 3, 5, 8))


def test_refuses_second_derivatives() -> None:
    given = {n: t.requires_grad_() for n, t in inputs(EQUAL, (2, 3, 8, 6, 2), torch.float32).items()}
    y = routed_linear(**given, rows=EQUAL.tensors()[0])
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(y.sum(), given["x"], create_graph=True)
