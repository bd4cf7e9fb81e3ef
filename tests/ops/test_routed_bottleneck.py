from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mhr.ops import routed_bottleneck
from mhr.ops.checks import accumulator
from tests.helpers import DTYPES, assert_close
from tests.ops.cases import LAYOUTS, Layout, double, mix_formula, strided, values, with_gradients

EQUAL, RAGGED = LAYOUTS[1], LAYOUTS[2]
# H, S, O, R
SIZES = ((1, 1, 1, 1), (1, 5, 31, 4), (4, 4, 128, 3), (3, 2, 129, 16), (1, 4, 260, 33))


def inputs(
    layout: Layout, size: tuple[int, ...], dtype: torch.dtype, bank_dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    n_heads, n_skills, n_out, rank = size
    bank_dtype = bank_dtype or dtype
    width = n_out // n_heads
    return {
        "x": values(*layout.leading, n_out, dtype=dtype),
        "bank_a": values(n_heads, n_skills, width, rank, dtype=bank_dtype, spread=n_out**-0.5),
        # Where GELU is all but zero, 1 + erf cancels: its relative error there says nothing.
        "bias_a": 1 + values(n_heads, n_skills, 1, rank, dtype=bank_dtype),
        "bank_b": values(n_heads, n_skills, rank, width, dtype=bank_dtype, spread=rank**-0.5),
        "bias_b": values(n_heads, n_skills, 1, width, dtype=bank_dtype),
        "weights": values(layout.n_rows, n_heads, n_skills, dtype=accumulator(bank_dtype)),
    }


def formula(tokens: Tensor, tokens_b: Tensor) -> Callable[..., Tensor]:
    def function(
        x: Tensor,
        bank_a: Tensor,
        bias_a: Tensor,
        bank_b: Tensor,
        bias_b: Tensor,
        weights: Tensor | None = None,
        weights_b: Tensor | None = None,
    ) -> Tensor:
        if weights is None:
            a, down, b, up = bank_a[0], bias_a[0, :, 0], bank_b[0], bias_b[0, :, 0]
        else:
            other = weights if weights_b is None else weights_b
            a, down = mix_formula(bank_a, weights, 1), mix_formula(bias_a, weights, 1).mean(1)
            b, up = mix_formula(bank_b, other, 2), mix_formula(bias_b, other, 2)[:, 0]
        flat = x.reshape(-1, x.shape[-1])
        z = torch.einsum("ni,nir->nr", flat, a[tokens].to(x.dtype)) + down[tokens].to(x.dtype)
        h = 0.5 * z * (1 + torch.erf(z * 0.5**0.5))
        y = flat + torch.einsum("nr,nro->no", h, b[tokens_b].to(x.dtype)) + up[tokens_b].to(x.dtype)
        return y.reshape(x.shape)

    return function


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda case: case.name)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_accuracy(size: tuple[int, ...], layout: Layout, dtype: torch.dtype) -> None:
    given = inputs(layout, size, dtype)
    rows, offsets = layout.tensors()
    tokens = layout.row_of_token()
    upstream = None
    if size == SIZES[0]:  # one number is one sum, whose relative error means something only without cancellation
        given = {name: t.abs() for name, t in given.items()}
        upstream = [torch.ones_like(given["x"])]
    found = with_gradients(lambda **t: routed_bottleneck(**t, rows=rows, offsets=offsets), given, upstream)
    assert_close(found, with_gradients(formula(tokens, tokens), double(given), upstream), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda case: case.name)
def test_accuracy_where_each_skill_is_a_row(layout: Layout, dtype: torch.dtype) -> None:
    given = inputs(layout, (1, layout.n_rows, 130, 5), dtype)
    del given["weights"]
    rows, offsets = layout.tensors()
    rows_b = layout.n_rows - 1 - rows
    tokens = layout.row_of_token()
    found = with_gradients(
        lambda **t: routed_bottleneck(**t, weights=None, rows=rows, rows_b=rows_b, offsets=offsets), given
    )
    truth = with_gradients(formula(tokens, layout.n_rows - 1 - tokens), double(given))
    assert_close(found, truth, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accuracy_with_weights_of_its_own_for_b_and_float32_banks(dtype: torch.dtype) -> None:
    given = inputs(RAGGED, SIZES[3], dtype, bank_dtype=torch.float32)
    for name in ("bank_b", "bias_b"):
        given[name] = given[name][:, :1].clone()  # one that all skills share
    given["weights_b"] = torch.rand(RAGGED.n_rows, 3, 1)
    rows, offsets = RAGGED.tensors()
    tokens = RAGGED.row_of_token()
    found = with_gradients(lambda **t: routed_bottleneck(**t, rows=rows, offsets=offsets), given)
    assert_close(found, with_gradients(formula(tokens, tokens), double(given)), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accuracy_of_a_rank_beyond_one_launch(dtype: torch.dtype) -> None:
    given = inputs(RAGGED, (1, 2, 24, 270), dtype)
    rows, offsets = RAGGED.tensors()
    tokens = RAGGED.row_of_token()
    found = with_gradients(lambda **t: routed_bottleneck(**t, rows=rows, offsets=offsets), given)
    assert_close(found, with_gradients(formula(tokens, tokens), double(given)), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_segments_without_an_adapter_are_the_residual_alone(dtype: torch.dtype) -> None:
    given = inputs(EQUAL, SIZES[2], dtype)
    given["x"].requires_grad_()
    y = routed_bottleneck(**given, rows=torch.tensor([-1, 1, -1]))
    upstream = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, given["x"], upstream)
    for found, residual in ((y, given["x"]), (dx, upstream)):
        assert torch.equal(found[[0, 2]], residual[[0, 2]])
        assert not torch.equal(found[1], residual[1])


@pytest.mark.parametrize("weighed", [True, False])
def test_non_contiguous_inputs(weighed: bool) -> None:
    given = inputs(RAGGED, (1, RAGGED.n_rows, 6, 2), torch.float32)
    if not weighed:
        del given["weights"]
    rows, offsets = RAGGED.tensors()
    assert offsets is not None
    settings = {} if weighed else {"weights": None}
    tokens = RAGGED.row_of_token()

    def ours(**tensors: Tensor) -> Tensor:
        apart = {name: strided(t) for name, t in tensors.items()}
        return routed_bottleneck(**apart, **settings, rows=strided(rows), offsets=strided(offsets))

    truth = with_gradients(formula(tokens, tokens), double(given))
    assert_close(with_gradients(ours, given), truth, torch.float32)


@pytest.mark.parametrize("weighed", [True, False])
def test_gradcheck(weighed: bool) -> None:
    rows, offsets = RAGGED.tensors()
    given = inputs(RAGGED, (1, RAGGED.n_rows, 6, 2), torch.float64)
    weights = given.pop("weights")
    leaves = [t.requires_grad_() for t in [*given.values(), *([weights] if weighed else [])]]

    def function(*tensors: Tensor) -> Tensor:
        return routed_bottleneck(*tensors[:5], tensors[5] if weighed else None, rows, offsets=offsets)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def test_it_leaves_its_input_alone_and_keeps_only_the_activations_of_the_rank() -> None:
    given = inputs(EQUAL, (2, 3, 8, 2), torch.float32)
    rows, _ = EQUAL.tensors()
    before = given["x"].clone()
    given["bank_a"].requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = routed_bottleneck(**given, rows=rows)
    assert torch.equal(given["x"], before)
    known = {t.data_ptr() for t in (*given.values(), rows)}
    assert [tuple(t.shape) for t in kept if t.data_ptr() not in known] == [(15, 2)]
    y.sum().backward()
    assert given["bank_a"].grad is not None


@pytest.mark.parametrize("weighed", [True, False])
def test_compiles_without_graph_breaks(weighed: bool, backend: str) -> None:
    rows, offsets = RAGGED.tensors()
    given = inputs(RAGGED, (1, RAGGED.n_rows, 8, 2), torch.float32)
    settings = {} if weighed else {"weights": None}
    if not weighed:
        del given["weights"]

    def function(**tensors: Tensor) -> Tensor:
        return routed_bottleneck(**tensors, **settings, rows=rows, offsets=offsets).square()

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert_close(with_gradients(compiled, given), with_gradients(function, given), torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(3, 5, 10)}, "x must have O = 8 columns, as bank_a adapts, got 10"),
        ({"weights": None}, "without weights, only where there is one head, got 2"),
        ({"weights": torch.rand(4, 2, 4)}, r"weights.* must have shape \(U, H, S\) = \(4, 2, 3\), got \(4, 2, 4\)"),
        ({"bank_b": torch.randn(2, 3, 3, 4)}, r"got \(4, 3, 8\)|bank_a has rank 2, bank_b 3"),
        ({"rows": torch.tensor([0, 1, 4])}, r"rows must lie in 0\.\.3"),
        ({"bias_a": torch.randn(2, 3, 2, 2)}, r"bias_a must have shape \(H, S, 1, R\) = \(2, 3, 1, 2\), got"),
        ({"bias_b": torch.randn(2, 3, 2, 4)}, r"bias_b must have shape \(H, S, 1, O/H\) = \(2, 3, 1, 4\), got"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, Tensor | None], message: str) -> None:
    given = inputs(EQUAL, (2, 3, 8, 2), torch.float32) | {"rows": EQUAL.tensors()[0]}
    with pytest.raises(RuntimeError, match=message):
        routed_bottleneck(**(given | change))  # type: ignore[arg-type]


def test_refuses_vmap_and_second_derivatives() -> None:
    given = inputs(EQUAL, (2, 3, 8, 2), torch.float32)
    rows = EQUAL.tensors()[0]
    with pytest.raises(RuntimeError, match="mhr::routed_bottleneck does not support torch.func"):
        torch.func.vmap(lambda x: routed_bottleneck(**{**given, "x": x}, rows=rows))(torch.randn(2, 3, 5, 8))
    y = routed_bottleneck(**{n: t.requires_grad_() for n, t in given.items()}, rows=rows)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(y.sum(), given["x"], create_graph=True)
