"""routed_bottleneck: a residual bottleneck adapter out of a bank, in one autograd node; AdaMix's module, routed by any weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhr.ops.autograd import apply, refuse_second_order
from mhr.ops.checks import accumulator, check, check_shape
from mhr.ops.native import register_op
from mhr.ops.routed_adapter import n_tokens

BOTTLENECK_HEAD_DIMS = (1, 1, 2, 2)


def routed_bottleneck(
    x: Tensor,
    bank_a: Tensor,
    bias_a: Tensor,
    bank_b: Tensor,
    bias_b: Tensor,
    weights: Tensor | None,
    rows: Tensor,
    *,
    weights_b: Tensor | None = None,
    rows_b: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """y = x + gelu(x A_u + a_u) B_v + b_v for each token segment g, u = rows[g], v = rows_b[g].

    In plain torch, for x of `[G, L, O]`, a segment each::

        A = torch.einsum("uhs,hsir->uhir", weights, bank_a).flatten(1, 2)
        a = torch.einsum("uhs,hsir->uir", weights, bias_a) / len(bank_a)
        B, b = (torch.einsum("uhs,hsro->urho", weights_b, bank).flatten(2) for bank in (bank_b, bias_b))
        y = x + F.gelu(x @ A[rows] + a[rows]) @ B[rows_b] + b[rows_b]

    A_u = concat_h sum_s weights[u, h, s] bank_a[h, s] along the input, B_v and b_v likewise along the output (with weights_b),
    a_u = mean_h sum_s weights[u, h, s] bias_a[h, s]. Without weights each skill is a row: A_u = bank_a[0, u], with one head.

    Args:
        x: `[..., O]`, N tokens.
        bank_a: `[H, S, O/H, R]`; bias_a: `[H, S, 1, R]`; bank_b: `[H, S, R, O/H]`; bias_b: `[H, S, 1, O/H]`; of one float dtype,
            without weights that of x or float32. The two sides may differ in S.
        weights: `[U, H, S]`, float32 (float64 with float64 banks), or None; weights_b: `[U', H, S]`, of B and b where it differs.
        rows: int64 `[G]`, the row of each segment, -1 for no adapter; rows_b: of B and b where it differs.
        offsets: int64 `[G + 1]`, the first token of each segment and the end; None means G equal segments.

    Returns y `[..., O]`, a new tensor. The GELU is the exact erf form. Differentiable once in every float argument; saved for
    backward beside the inputs: 4 N R bytes. Deterministic. AdaMix (arXiv 2205.12410), which draws u and v at random.
    Raises RuntimeError where shapes or dtypes do not fit.
    """
    op = "routed_bottleneck"
    check(bank_a.dim() == 4, f"mhr::{op}: bank_a must have shape (H, S, O/H, R), got {tuple(bank_a.shape)}")
    heads, skills, width, rank = bank_a.shape
    check(
        heads * width == x.shape[-1],
        f"mhr::{op}: x must have O = {heads * width} columns, as bank_a adapts, got {x.shape[-1]}",
    )
    check(
        weights is not None or heads == 1,
        f"mhr::{op}: skills are rows, without weights, only where there is one head, got {heads}",
    )
    check_shape(op, "bias_a", bias_a, "H S 1 R", (heads, skills, 1, rank))
    check_shape(op, "bias_b", bias_b, "H S 1 O/H", (*bank_b.shape[:2], 1, width))
    return apply(_RoutedBottleneck, x, bank_a, bias_a, bank_b, bias_b, weights, weights_b, rows, rows_b, offsets)


class _RoutedBottleneck(torch.autograd.Function):
    op = "routed_bottleneck"

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bank_a: Tensor,
        bias_a: Tensor,
        bank_b: Tensor,
        bias_b: Tensor,
        weights: Tensor | None,
        weights_b: Tensor | None,
        rows: Tensor,
        rows_b: Tensor | None,
        offsets: Tensor | None,
    ) -> Tensor:
        x, rows = x.contiguous(), rows.contiguous()
        banks = (bank_a.contiguous(), bias_a.contiguous(), bank_b.contiguous(), bias_b.contiguous())
        weights, weights_b, rows_b, offsets = (
            t if t is None else t.contiguous() for t in (weights, weights_b, rows_b, offsets)
        )
        y, z = _forward(x, *banks, weights, weights_b, rows, rows_b, offsets)
        ctx.save_for_backward(x, *banks, weights, weights_b, rows, rows_b, offsets, z)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order("routed_bottleneck")
        *given, z = ctx.saved_tensors
        weights, weights_b = given[5:7]
        need_x = ctx.needs_input_grad[0]
        dx, *d_banks, d_weights, d_weights_b = _backward(dy.contiguous(), given[0], z, *given[1:], need_x)
        return (
            dx if need_x else None,
            *d_banks,
            None if weights is None else d_weights,
            None if weights_b is None else d_weights_b,
            None,
            None,
            None,
        )


# Where no kernel does all in one, the parts serve, each by its own kernel or reference.
def _forward_composite(
    x: Tensor,
    bank_a: Tensor,
    bias_a: Tensor,
    bank_b: Tensor,
    bias_b: Tensor,
    weights: Tensor | None,
    weights_b: Tensor | None,
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    a, bias, b, bias_out = _rows_of(x, (bank_a, bias_a, bank_b, bias_b), weights, weights_b)
    y = x.clone()
    return y, torch.ops.mhr.routed_adapter_forward(y, x, a, b, rows, rows_b, offsets, bias, bias_out, "gelu", 1.0)


def _backward_composite(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    bank_a: Tensor,
    bias_a: Tensor,
    bank_b: Tensor,
    bias_b: Tensor,
    weights: Tensor | None,
    weights_b: Tensor | None,
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
    need_x: bool,
) -> tuple[Tensor, ...]:
    ops, banks = torch.ops.mhr, (bank_a, bias_a, bank_b, bias_b)
    a, _, b, _ = _rows_of(x, banks, weights, weights_b)
    dz, d_b, d_bias_b = ops.routed_adapter_backward_dy(
        dy, z, b, rows if rows_b is None else rows_b, offsets, "gelu", 1.0, True
    )
    dx = dy.clone() if need_x else None  # the gradient of the residual, which the adapter's is added to
    d_a, d_bias_a = ops.routed_adapter_backward_x(dx, x, dz, a, rows, offsets, True, True)
    dx, none = x.new_empty(0) if dx is None else dx, d_a.new_empty(0)
    if weights is None:
        found = [d.reshape(bank.shape) for d, bank in zip((d_a, d_bias_a, d_b, d_bias_b), banks, strict=True)]
        return dx, *found, none, none.clone()
    heads = bank_a.shape[0]
    grads = (d_a, (d_bias_a / heads)[:, None].repeat(1, heads, 1), d_b, d_bias_b[:, None])
    *d_banks, w_a, w_bias_a, w_b, w_bias_b = ops.mix_backward(
        grads, banks, _sides(weights, weights_b), (0, 1, 2, 3), BOTTLENECK_HEAD_DIMS, True, True
    )
    d_weights, d_weights_b = w_a + w_bias_a, w_b + w_bias_b
    if weights_b is None:
        return dx, *d_banks, d_weights + d_weights_b, none
    return dx, *d_banks, d_weights, d_weights_b


def _rows_of(
    x: Tensor, banks: tuple[Tensor, ...], weights: Tensor | None, weights_b: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A `[U, O, R]`, a `[U, R]`, B `[U', R, O]` and b `[U', O]`; mixed ones as the sums they are."""
    if weights is None:
        a, bias_a, b, bias_b = (bank.squeeze(0) for bank in banks)
        return a, bias_a.squeeze(1), b, bias_b.squeeze(1)
    a, bias_a, b, bias_b = torch.ops.mhr.mix(
        banks, _sides(weights, weights_b), BOTTLENECK_HEAD_DIMS, accumulator(x.dtype)
    )
    return a, bias_a.mean(1), b, bias_b.squeeze(1)


def _sides(weights: Tensor, weights_b: Tensor | None) -> tuple[Tensor, ...]:
    """The weights of each bank."""
    b = weights if weights_b is None else weights_b
    return weights, weights, b, b


def _fake(
    x: Tensor,
    bank_a: Tensor,
    bias_a: Tensor,
    bank_b: Tensor,
    bias_b: Tensor,
    weights: Tensor | None,
    weights_b: Tensor | None,
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((n_tokens(x), bank_a.shape[3]), dtype=accumulator(x.dtype))


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    bank_a: Tensor,
    bias_a: Tensor,
    bank_b: Tensor,
    bias_b: Tensor,
    weights: Tensor | None,
    weights_b: Tensor | None,
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
    need_x: bool,
) -> tuple[Tensor, ...]:
    banks, sums = (bank_a, bias_a, bank_b, bias_b), accumulator(x.dtype)
    d_banks = [bank.new_empty(bank.shape, dtype=sums if weights is None else bank.dtype) for bank in banks]
    d_weights = [x.new_empty((0,) if w is None else w.shape, dtype=sums) for w in (weights, weights_b)]
    return x.new_empty(x.shape if need_x else (0,)), *d_banks, *d_weights


_forward = register_op(
    "routed_bottleneck_forward(Tensor x, Tensor bank_a, Tensor bias_a, Tensor bank_b, Tensor bias_b, Tensor? weights,"
    " Tensor? weights_b, Tensor rows, Tensor? rows_b, Tensor? offsets) -> (Tensor, Tensor)",
    _forward_composite,
    _fake,
)
_backward = register_op(
    "routed_bottleneck_backward(Tensor dy, Tensor x, Tensor z, Tensor bank_a, Tensor bias_a, Tensor bank_b, Tensor bias_b,"
    " Tensor? weights, Tensor? weights_b, Tensor rows, Tensor? rows_b, Tensor? offsets, bool need_x)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_composite,
    _backward_fake,
)
