"""routed_linears: several frozen linears that read the same x, each with a routed low-rank update, in one autograd node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mhr.ops.autograd import apply, refuse_second_order
from mhr.ops.checks import accumulator, check
from mhr.ops.mix import has_zeros_behind
from mhr.ops.native import register_op
from mhr.ops.routed_adapter import n_tokens
from mhr.ops.routed_linear import OPERATIONS_OF_A_BYTE, product


def routed_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    A: Tensor,
    B: Sequence[Tensor],
    rows: Tensor,
    scale: float = 1.0,
    *,
    rows_b: Tensor | None = None,
    offsets: Tensor | None = None,
) -> list[Tensor]:
    """y_i = x W_i^T + bias_i + scale * (x A_u,i) B_v,i for each linear i and token segment g, u = rows[g], v = rows_b[g].

    It is `routed_linear` of factors that are given, once for each i, but x is read once for all of them and the gradient of x is
    written once. In plain torch, for x of `[G, L, I]`, a segment each::

        h = (x @ A[rows]).split([b.shape[1] for b in B], -1)
        y = [F.linear(x, w, c) + scale * z @ b[rows_b] for w, c, z, b in zip(weights, biases, h, B)]

    Args:
        x: `[..., I]`, N tokens.
        weights: each `[O_i, I]`, biases: each `[O_i]` or None: the linears that are adapted.
        A: `[U, I, R_0 + R_1 + ...]`, their factors A side by side, of x's dtype or float32. `mix` with runs makes it so, of rows that
            zeros fill up to a multiple of 16 bytes.
        B: each `[U', R_i, O_i]`, of the dtype of A.
        rows, scale, rows_b, offsets: as of `routed_linear`.

    Returns y, each `[..., O_i]`. Differentiable once in every float argument. Saved beyond x are the rank-R activations. Under
    autocast x, weights and biases are cast as for F.linear. Deterministic. Raises RuntimeError where shapes or dtypes do not fit.
    """
    device = x.device.type
    n = len(weights)
    check(
        n > 0 and len(biases) == len(B) == n,
        f"mhr::routed_linears: got {n} weights, {len(biases)} biases and {len(B)} factors B",
    )
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weights = x.to(dtype), [w.to(dtype) for w in weights]
        biases = [c if c is None else c.to(dtype) for c in biases]
    if not A.is_contiguous() and not _is_in_rows(A, x):
        A = A.contiguous()
    first = x.is_cuda and _adapter_first(x, weights)
    return list(apply(_RoutedLinears, x, A, rows, rows_b, offsets, scale, first, *weights, *biases, *B))


def _is_in_rows(A: Tensor, x: Tensor) -> bool:
    """Whether the kernels can read A where it lies, in vectors of 16 bytes: columns that are whole vectors of a wider tensor, or that
    are followed by no more than zeros that fill their last one."""
    if A.dim() != 3 or A.dtype != x.dtype or A.stride(2) != 1 or A.stride(0) != A.shape[1] * A.stride(1):
        return False
    vector = 16 // A.element_size()
    whole = -(-A.shape[2] // vector) * vector
    if A.storage_offset() % vector or A.stride(1) % vector:
        return False
    if A.shape[2] == whole:
        return True
    return A.stride(1) == whole and not torch.compiler.is_compiling() and has_zeros_behind(A)


def _adapter_first(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """`mhr.ops.routed_linear.adapter_first` of all products at once."""
    n, n_in, n_out = n_tokens(x), x.shape[-1], sum(w.shape[0] for w in weights)
    moved = len(weights) * n * n_in + n_in * n_out + 2 * n * n_out
    return 2 * n * n_in * n_out > OPERATIONS_OF_A_BYTE * x.element_size() * moved


class _RoutedLinears(torch.autograd.Function):
    op = "routed_linears"

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        rows: Tensor,
        rows_b: Tensor | None,
        offsets: Tensor | None,
        scale: float,
        first: bool,
        *more: Tensor | None,
    ) -> tuple[Tensor, ...]:
        n = len(more) // 3
        weights, biases = [w for w in more[:n] if w is not None], more[n : 2 * n]
        x, rows = x.contiguous(), rows.contiguous()
        rows_b, offsets = (t if t is None else t.contiguous() for t in (rows_b, offsets))
        B = [b.contiguous() for b in more[2 * n :] if b is not None]
        if first:
            ys = [x.new_empty(*x.shape[:-1], b.shape[2]) for b in B]
            given = [c if c is None else c.contiguous() for c in biases]
            h = _forward(ys, x, given, A, B, rows, rows_b, offsets, scale, False)
            for y, w in zip(ys, weights, strict=True):
                y.view(-1, y.shape[-1]).addmm_(x.view(-1, x.shape[-1]), w.t())
        else:
            ys = [F.linear(x, w, c) for w, c in zip(weights, biases, strict=True)]
            h = _forward(ys, x, [None] * n, A, B, rows, rows_b, offsets, scale, True)
        ctx.scale, ctx.first = scale, first
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, A, h, rows, rows_b, offsets, *weights, *B)
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_order("routed_linears")
        x, A, h, rows, rows_b, offsets, *more = ctx.saved_tensors
        n, n_in, first = len(grads), x.shape[-1], ctx.first
        weights, B = more[:n], more[n:]
        none: list[Tensor | None] = [None] * (7 + 3 * n)
        if all(g is None for g in grads):
            return tuple(none)
        # What nothing was made of counts as zeros.
        dys = [
            x.new_zeros(*x.shape[:-1], b.shape[2]) if g is None else g.contiguous()
            for g, b in zip(grads, B, strict=True)
        ]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x) if first else product(dys[0], weights[0])

        def add_products(begin: int) -> None:
            if dx is not None:
                for dy, w in zip(dys[begin:], weights[begin:], strict=True):
                    dx.view(-1, n_in).addmm_(dy.view(-1, dy.shape[-1]), w)

        if not first:
            add_products(1)
        d_b = [torch.empty_like(b, dtype=h.dtype) for b in B]
        d_a = _backward(dx, d_b, dys, x, h, A, B, rows, rows_b, offsets, ctx.scale, not first)
        if first:
            add_products(0)
        need_weights, need_biases = ctx.needs_input_grad[7 : 7 + n], ctx.needs_input_grad[7 + n : 7 + 2 * n]
        flat = x.view(-1, n_in)
        d_weights = [
            dy.view(-1, dy.shape[-1]).T @ flat if need else None for dy, need in zip(dys, need_weights, strict=True)
        ]
        d_biases = [
            dy.view(-1, dy.shape[-1]).sum(0) if need else None for dy, need in zip(dys, need_biases, strict=True)
        ]
        return dx, d_a, None, None, None, None, None, *d_weights, *d_biases, *d_b


def _check(x: Tensor, A: Tensor, B: Sequence[Tensor]) -> None:
    op = "routed_linears"
    for name, axes, factor in (("A", "(U, I, R)", A), *((f"B[{i}]", "(U, R, O)", b) for i, b in enumerate(B))):
        check(factor.dim() == 3, f"mhr::{op}: {name} must have shape {axes}, got {tuple(factor.shape)}")
    ranks = sum(b.shape[1] for b in B)
    check(A.shape[2] == ranks, f"mhr::{op}: A has rank {A.shape[2]}, the factors B together {ranks}")
    check(x.shape[-1] == A.shape[1], f"mhr::{op}: x must have I = {A.shape[1]} columns, as A adapts, got {x.shape[-1]}")


# One call of the adapter for each, in turn: what serves where no kernel reads x once.
def _forward_composite(
    ys: Sequence[Tensor],
    x: Tensor,
    biases: Sequence[Tensor | None],
    A: Tensor,
    B: Sequence[Tensor],
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
    scale: float,
    accumulate: bool,
) -> Tensor:
    _check(x, A, B)
    check(
        not accumulate or all(c is None for c in biases),
        "mhr::routed_linears: biases are for a y that is not accumulated into",
    )
    found = []
    for y, c, a, b in zip(ys, biases, A.split([b.shape[1] for b in B], -1), B, strict=True):
        if not accumulate:
            y.copy_(torch.zeros((), dtype=y.dtype, device=y.device) if c is None else c)
        found.append(
            torch.ops.mhr.routed_adapter_forward(
                y, x, a.contiguous(), b, rows, rows_b, offsets, None, None, "none", scale
            )
        )
    return torch.cat(found, -1)


def _backward_composite(
    dx: Tensor | None,
    d_b: Sequence[Tensor],
    dys: Sequence[Tensor],
    x: Tensor,
    h: Tensor,
    A: Tensor,
    B: Sequence[Tensor],
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
    scale: float,
    accumulate: bool,
) -> Tensor:
    _check(x, A, B)
    ops, ranks, dzs = torch.ops.mhr, [b.shape[1] for b in B], []
    for dy, z, b, d in zip(dys, h.split(ranks, -1), B, d_b, strict=True):
        dz, db, _ = ops.routed_adapter_backward_dy(
            dy, z.contiguous(), b, rows if rows_b is None else rows_b, offsets, "none", scale, False
        )
        dzs.append(dz)
        d.copy_(db)
    d_a: Tensor = ops.routed_adapter_backward_x(
        dx, x, torch.cat(dzs, -1), A.contiguous(), rows, offsets, accumulate, False
    )[0]
    return d_a


def _fake(
    ys: Sequence[Tensor],
    x: Tensor,
    biases: Sequence[Tensor | None],
    A: Tensor,
    B: Sequence[Tensor],
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
    scale: float,
    accumulate: bool,
) -> Tensor:
    _check(x, A, B)
    return x.new_empty((n_tokens(x), A.shape[-1]), dtype=accumulator(x.dtype))


def _backward_fake(
    dx: Tensor | None,
    d_b: Sequence[Tensor],
    dys: Sequence[Tensor],
    x: Tensor,
    h: Tensor,
    A: Tensor,
    B: Sequence[Tensor],
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
    scale: float,
    accumulate: bool,
) -> Tensor:
    return x.new_empty(A.shape, dtype=accumulator(x.dtype))


_forward = register_op(
    "routed_linears_forward(Tensor(a!)[] ys, Tensor x, Tensor?[] biases, Tensor A, Tensor[] B, Tensor rows, Tensor? rows_b,"
    " Tensor? offsets, float scale, bool accumulate) -> Tensor",
    _forward_composite,
    _fake,
)
_backward = register_op(
    "routed_linears_backward(Tensor(a!)? dx, Tensor(b!)[] d_b, Tensor[] dys, Tensor x, Tensor h, Tensor A, Tensor[] B, Tensor rows,"
    " Tensor? rows_b, Tensor? offsets, float scale, bool accumulate) -> Tensor",
    _backward_composite,
    _backward_fake,
)
