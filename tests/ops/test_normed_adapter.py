"""A layer norm folded into the up projection, against the formula in float64 and against the steps that it is written as."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mhr.ops.checks import accumulator
from mhr.ops.normed_adapter import fold_norm, normed_adapter
from tests.helpers import DTYPES, LIMITS, assert_close, error
from tests.ops.cases import LAYOUTS, Layout, double, strided, values, with_gradients

EQUAL, RAGGED = LAYOUTS[1], LAYOUTS[2]
SIZES = ((8, 12), (31, 4), (130, 16))
"""O, R; fewer features than directions among them."""


def inputs(n_out: int, rank: int, layout: Layout, dtype: torch.dtype, rows_b: int | None = None) -> dict[str, Tensor]:
    own, n_rows = {"dtype": accumulator(dtype)}, layout.n_rows
    other = n_rows if rows_b is None else rows_b
    return {
        "x": values(*layout.leading, n_out, dtype=dtype),
        "A": values(n_rows, n_out, rank, spread=n_out**-0.5, **own),
        "B": values(other, rank, n_out, spread=rank**-0.5, **own),
        # Where GELU is all but zero, 1 + erf cancels: its relative error there says nothing.
        "bias_a": 1 + values(n_rows, rank, **own),
        "bias_b": values(other, n_out, **own),
        "scale": values(other, n_out, **own),
        "shift": values(other, n_out, **own),
    }


def folded(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    bias_a: Tensor,
    bias_b: Tensor,
    scale: Tensor,
    shift: Tensor,
    rows: Tensor,
    **places: Tensor | None,
) -> Tensor:
    return normed_adapter(x, A, bias_a, *fold_norm(B, bias_b, scale), shift, rows, **places)


@pytest.fixture
def normed_in_steps() -> Callable[..., Tensor]:
    """What it is folded out of: a layer's, which imports transformers."""
    pytest.importorskip("transformers")
    from mhr.layers.routed_bottleneck import normed_in_steps

    return normed_in_steps


@pytest.fixture(params=["folded", "in steps"])
def normed(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    return folded if request.param == "folded" else request.getfixturevalue("normed_in_steps")


def formula(tokens: Tensor, tokens_b: Tensor) -> Callable[..., Tensor]:
    def function(
        x: Tensor, A: Tensor, B: Tensor, bias_a: Tensor, bias_b: Tensor, scale: Tensor, shift: Tensor
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        z = torch.einsum("ni,nir->nr", flat, A[tokens]) + bias_a[tokens]
        update = torch.einsum("nr,nro->no", F.gelu(z), B[tokens_b]) + bias_b[tokens_b]
        update = update - update.mean(-1, keepdim=True)
        update = update / (update.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return (flat + scale[tokens_b] * update + shift[tokens_b]).reshape(x.shape)

    return function


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda case: case.name)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_accuracy(size: tuple[int, int], layout: Layout, dtype: torch.dtype, normed: Callable[..., Tensor]) -> None:
    given = inputs(*size, layout, dtype)
    rows, offsets = layout.tensors()
    tokens = layout.row_of_token()
    truth = with_gradients(formula(tokens, tokens), double(given))
    assert_close(with_gradients(partial(normed, rows=rows, offsets=offsets), given), truth, dtype)


@pytest.mark.parametrize("layout", [EQUAL, RAGGED], ids=lambda case: case.name)
def test_the_two_sides_may_take_rows_of_their_own(layout: Layout) -> None:
    given = {name: strided(t) for name, t in inputs(130, 5, layout, torch.float64, rows_b=3).items()}
    rows, offsets = layout.tensors()
    rows_b = (rows + 1) % 3
    tokens = layout.row_of_token()
    tokens_b = rows_b.repeat_interleave(layout.leading[1] if offsets is None else offsets.diff())
    places = {
        "rows": strided(rows),
        "rows_b": strided(rows_b),
        "offsets": offsets if offsets is None else strided(offsets),
    }
    found = with_gradients(lambda **t: folded(**t, **places), given)
    assert_close(found, with_gradients(formula(tokens, tokens_b), double(given)), torch.float64)


def test_a_task_without_an_adapter_has_none() -> None:
    given = {name: torch.zeros_like(t) if name != "x" else t for name, t in inputs(31, 4, EQUAL, torch.float32).items()}
    found = with_gradients(lambda **t: folded(**t, rows=EQUAL.tensors()[0]), given)
    assert torch.equal(next(iter(found.values())), given["x"])
    assert all(t.isfinite().all() for t in found.values())


def test_updates_that_nearly_cancel_are_as_accurate_as_step_by_step(normed_in_steps: Callable[..., Tensor]) -> None:
    """The variance of the sum of two directions that are nearly opposite is no difference of large numbers."""
    given = inputs(130, 2, EQUAL, torch.float32)
    given["A"][..., 1], given["bias_a"][:, 1] = given["A"][..., 0], given["bias_a"][:, 0]
    given["B"] = 100 * given["B"]
    given["B"][:, 1] = 1e-3 * given["B"][:, 1] - given["B"][:, 0]
    given["bias_b"].zero_()
    tokens = EQUAL.row_of_token()
    truth = formula(tokens, tokens)(**double(given))
    one, two = (normed(**given, rows=EQUAL.tensors()[0]) for normed in (folded, normed_in_steps))
    assert error(one, truth) < 4 * error(two, truth) + LIMITS[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    given = inputs(31, 4, EQUAL, dtype)
    rows = EQUAL.tensors()[0]

    def under(**tensors: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return folded(**tensors, rows=rows)

    plain, found = (with_gradients(f, given) for f in (partial(folded, rows=rows), under))
    for name, tensor in plain.items():
        assert torch.equal(found[name], tensor), name


def test_it_is_differentiable_once() -> None:
    given = {name: t.requires_grad_() for name, t in inputs(31, 4, EQUAL, torch.float64).items()}
    y = folded(**given, rows=EQUAL.tensors()[0])
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(y.sum(), list(given.values()), create_graph=True)
