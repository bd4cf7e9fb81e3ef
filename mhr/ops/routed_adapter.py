"""routed_adapter: a low-rank adapter whose factors are chosen segment by segment, added into y in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mhr.ops.autograd import apart, apply, refuse_in_place, refuse_second_order
from mhr.ops.checks import accumulator, check, check_shape, segment_bounds
from mhr.ops.native import register_op

ACTIVATIONS = ("none", "gelu")


def routed_adapter(
    y: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    rows: Tensor,
    scale: float = 1.0,
    *,
    rows_b: Tensor | None = None,
    offsets: Tensor | None = None,
    bias_a: Tensor | None = None,
    bias_b: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """y += scale * (act(x A_u + a_u) B_v + b_v) for each token segment g, u = rows[g], v = rows_b[g]; IN PLACE, returns y.

    In plain torch, for x of `[G, L, I]`, a segment each::

        h = F.gelu(x @ A[rows] + bias_a[rows, None])
        y += scale * (h @ B[rows_b] + bias_b[rows_b, None])

    With `activation="none"` and no biases this is LoRA (arXiv 2106.09685) and, with mixed factors, Poly and MHR; with
    GELU and biases it is the bottleneck adapter of AdaMix (arXiv 2205.12410), which draws down and up independently.

    Args:
        y: `[..., O]`, changed in place; N tokens in all.
        x: `[..., I]`, the same leading dimensions and dtype; it may share memory with y, and is then copied; within
            torch.compile it may be y itself, and no other view of it.
        A: `[U, I, R]`; B: `[U', R, O]`; the dtype of x or float32.
        rows: int64 `[G]`, the row of A of each segment; rows_b: the row of B (default: rows). Any order, with repeats. Row -1 is
            one of zeros: a segment of it has no adapter, its y is left as it is.
        scale: lora_alpha / rank.
        offsets: int64 `[G + 1]`, the first token of each segment and the end (empty segments allowed); None means G equal ones.
        bias_a: `[U, R]`; bias_b: `[U', O]`.
        activation: "none" or "gelu" (the exact erf form).

    Sums are held in float32 (float64 for float64). Differentiable once in y, x, A, B and the biases; saved for backward
    beside the inputs: 4 N R bytes. Deterministic. On a GPU the values of rows and offsets are checked with MHR_CHECK_VALUES=1
    only; without it, a segment whose row does not exist becomes NaN.
    Raises RuntimeError where shapes or dtypes do not fit, and where autograd lets no op change y in place.
    """
    if torch.is_autocast_enabled(y.device.type):
        x = x.to(y.dtype)
    tensors = (apart(x, y), A, B, rows, rows_b, offsets, bias_a, bias_b)
    refuse_in_place("routed_adapter", y, tensors)
    if torch.compiler.is_compiling():
        # Dynamo loses the gradient of an argument that a Function marks dirty; the compiler makes this in place again.
        return y.copy_(apply(_RoutedAdapter, y.clone(), *tensors, activation, scale, False))
    return apply(_RoutedAdapter, y, *tensors, activation, scale, True)


class _RoutedAdapter(torch.autograd.Function):
    op = "routed_adapter"

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        rows: Tensor,
        rows_b: Tensor | None,
        offsets: Tensor | None,
        bias_a: Tensor | None,
        bias_b: Tensor | None,
        activation: str,
        scale: float,
        dirty: bool,
    ) -> Tensor:
        x, A, B, rows = x.contiguous(), A.contiguous(), B.contiguous(), rows.contiguous()
        rows_b, offsets, bias_a, bias_b = (
            t if t is None else t.contiguous() for t in (rows_b, offsets, bias_a, bias_b)
        )
        target = y.contiguous()
        z = _forward(target, x, A, B, rows, rows_b, offsets, bias_a, bias_b, activation, scale)
        if target is not y:
            y.copy_(target)
        if dirty:
            ctx.mark_dirty(y)
        ctx.biases = None if bias_a is None else bias_a.dtype, None if bias_b is None else bias_b.dtype
        ctx.activation, ctx.scale = activation, scale
        ctx.save_for_backward(x, A, B, rows, rows_b, offsets, z)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order("routed_adapter")
        x, A, B, rows, rows_b, offsets, z = ctx.saved_tensors
        dtype_a, dtype_b = ctx.biases
        flat = dy.contiguous()
        dz, d_b, d_bias_b = _backward_dy(
            flat, z, B, rows if rows_b is None else rows_b, offsets, ctx.activation, ctx.scale, dtype_b is not None
        )
        dx = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        d_a, d_bias_a = _backward_x(dx, x, dz, A, rows, offsets, False, dtype_a is not None)
        return (
            dy,
            dx,
            d_a.to(A.dtype),
            d_b.to(B.dtype),
            None,
            None,
            None,
            d_bias_a.to(dtype_a) if dtype_a is not None else None,
            d_bias_b.to(dtype_b) if dtype_b is not None else None,
            None,
            None,
            None,
        )


def _check(
    op: str,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
    activation: str,
) -> None:
    check(x.dim() > 0 and A.dim() == 3, f"mhr::{op}: A must have shape (U, I, R), got {tuple(A.shape)}")
    check_shape(op, "A", A, "U I R", (A.shape[0], x.shape[-1], A.shape[2]))
    check(B.dim() == 3, f"mhr::{op}: B must have shape (U, R, O), got {tuple(B.shape)}")
    check_shape(op, "B", B, "U R O", (B.shape[0], A.shape[2], B.shape[2]))
    check(
        A.dtype in (x.dtype, accumulator(x.dtype)) and B.dtype == A.dtype,
        f"mhr::{op}: A and B must both be {x.dtype} or {accumulator(x.dtype)} beside that x, got {A.dtype} and {B.dtype}",
    )
    check_shape(op, "rows", rows, "G", (rows.numel(),))
    if rows_b is not None:
        check_shape(op, "rows_b", rows_b, "G", (rows.numel(),))
    if offsets is not None:
        check_shape(op, "offsets", offsets, "G+1", (rows.numel() + 1,))
    check(activation in ACTIVATIONS, f"mhr::{op}: activation must be one of {ACTIVATIONS}, got {activation!r}")


def check_row_index(op: str, name: str, rows: Tensor, n_rows: int) -> None:
    """Refuses a row outside the factors, where looking costs no device synchronisation."""
    if rows.device.type == "cpu" and rows.numel():
        low, high = int(rows.min()), int(rows.max())
        check(
            low >= -1 and high < n_rows,
            f"mhr::{op}: {name} must lie in 0..{n_rows - 1}, or be -1 for no adapter, got {low}..{high}",
        )


def _activate(z: Tensor, activation: str) -> Tensor:
    return F.gelu(z) if activation == "gelu" else z


def _choose(factors: Tensor, rows: Tensor) -> Tensor:
    """factors[rows], zeros for row -1."""
    if not factors.shape[0]:
        return factors.new_zeros(rows.shape[0], *factors.shape[1:])
    absent = (rows < 0).view(-1, *[1] * (factors.dim() - 1))
    return factors.index_select(0, rows.clamp_min(0)).masked_fill(absent, 0)


def _segment_matmul(x: Tensor, factors: Tensor, rows: Tensor, bounds: list[int]) -> Tensor:
    """out[n] = x[n] @ factors[rows[segment of n]], `[N, K]`; row -1 is one of zeros."""
    chosen = _choose(factors.to(x.dtype), rows)
    parts = [x[a:b] @ m for a, b, m in zip(bounds, bounds[1:], chosen, strict=False)]
    return torch.cat(parts) if parts else x.new_empty(0, factors.shape[2])


def _segment_outer(left: Tensor, right: Tensor, rows: Tensor, bounds: list[int], n_rows: int) -> Tensor:
    """out[u] = sum of left[n]^T right[n] over the tokens n of row u, `[U, J, K]` in the accumulator's dtype."""
    out = left.new_zeros(n_rows + 1, left.shape[1], right.shape[1], dtype=accumulator(left.dtype))
    rows = rows.remainder(n_rows + 1)  # -1 comes last, and goes
    for g, (a, b) in enumerate(zip(bounds, bounds[1:], strict=False)):
        out.index_add_(0, rows[g : g + 1], (left[a:b].T @ right[a:b]).to(out.dtype).unsqueeze(0))
    return out[:n_rows]


def _segment_sum(values: Tensor, rows: Tensor, bounds: list[int], n_rows: int) -> Tensor:
    out = values.new_zeros(n_rows + 1, values.shape[1], dtype=accumulator(values.dtype))
    rows = rows.remainder(n_rows + 1)
    for g, (a, b) in enumerate(zip(bounds, bounds[1:], strict=False)):
        out.index_add_(0, rows[g : g + 1], values[a:b].sum(0, keepdim=True, dtype=out.dtype))
    return out[:n_rows]


def _spread(bias: Tensor, rows: Tensor, bounds: list[int]) -> Tensor:
    """bias[rows[segment of n]] for every token n; row -1 is one of zeros."""
    lengths = torch.tensor(
        [b - a for a, b in zip(bounds, bounds[1:], strict=False)], device=rows.device, dtype=torch.int64
    )
    return _choose(bias, rows.repeat_interleave(lengths, output_size=bounds[-1]))


def routed_adapter_forward_reference(
    y: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
    bias_a: Tensor | None,
    bias_b: Tensor | None,
    activation: str,
    scale: float,
) -> Tensor:
    op = "routed_adapter"
    _check(op, x, A, B, rows, rows_b, offsets, activation)
    check_shape(op, "y", y, "... O", (*x.shape[:-1], B.shape[2]))
    check(y.dtype == x.dtype, f"mhr::{op}: y and x must have one dtype, got {y.dtype} and {x.dtype}")
    rows_b = rows if rows_b is None else rows_b
    check_row_index(op, "rows", rows, A.shape[0])
    check_row_index(op, "rows_b", rows_b, B.shape[0])
    tokens = x.reshape(n_tokens(x), x.shape[-1])
    bounds = segment_bounds(op, tokens.shape[0], rows.numel(), offsets)
    z = _segment_matmul(tokens, A, rows, bounds).to(accumulator(x.dtype))
    if bias_a is not None:
        check_shape(op, "bias_a", bias_a, "U R", (A.shape[0], A.shape[2]))
        z = z + _spread(bias_a, rows, bounds)
    delta = _segment_matmul(_activate(z, activation).to(x.dtype), B, rows_b, bounds)
    if bias_b is not None:
        check_shape(op, "bias_b", bias_b, "U O", (B.shape[0], B.shape[2]))
        delta = delta + _spread(bias_b, rows_b, bounds)
    y.add_(delta.to(y.dtype).view_as(y), alpha=scale)
    return z


def routed_adapter_backward_dy_reference(
    dy: Tensor,
    z: Tensor,
    B: Tensor,
    rows: Tensor,
    offsets: Tensor | None,
    activation: str,
    scale: float,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad = dy.reshape(z.shape[0], B.shape[2])
    bounds = segment_bounds("routed_adapter_backward_dy", z.shape[0], rows.numel(), offsets)
    d_h = scale * _segment_matmul(grad, B.transpose(1, 2), rows, bounds).to(z.dtype)
    h = _activate(z, activation)
    d_factor = scale * _segment_outer(h.to(grad.dtype), grad, rows, bounds, B.shape[0])
    d_bias = scale * _segment_sum(grad, rows, bounds, B.shape[0]) if need_bias else z.new_empty(0)
    return torch.ops.aten.gelu_backward(d_h, z) if activation == "gelu" else d_h, d_factor, d_bias


def routed_adapter_backward_x_reference(
    dx: Tensor | None,
    x: Tensor,
    dz: Tensor,
    A: Tensor,
    rows: Tensor,
    offsets: Tensor | None,
    accumulate: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:
    tokens = x.reshape(dz.shape[0], A.shape[1])
    bounds = segment_bounds("routed_adapter_backward_x", dz.shape[0], rows.numel(), offsets)
    rounded = dz.to(x.dtype)
    if dx is not None:
        found = _segment_matmul(rounded, A.transpose(1, 2), rows, bounds).view_as(dx)
        dx.add_(found) if accumulate else dx.copy_(found)
    d_factor = _segment_outer(tokens, rounded, rows, bounds, A.shape[0])
    return d_factor, _segment_sum(dz, rows, bounds, A.shape[0]) if need_bias else dz.new_empty(0)


def n_tokens(x: Tensor) -> int:
    """Tokens of x `[..., I]`: the product of its leading dimensions."""
    check(x.dim() > 0, "mhr: x must have shape (..., I), got ()")
    count = 1
    for size in x.shape[:-1]:
        count *= size
    return count


def _fake(
    y: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
    bias_a: Tensor | None,
    bias_b: Tensor | None,
    activation: str,
    scale: float,
) -> Tensor:
    _check("routed_adapter", x, A, B, rows, rows_b, offsets, activation)
    return x.new_empty((n_tokens(x), A.shape[2]), dtype=accumulator(x.dtype))


def _backward_dy_fake(
    dy: Tensor,
    z: Tensor,
    B: Tensor,
    rows: Tensor,
    offsets: Tensor | None,
    activation: str,
    scale: float,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(z),
        z.new_empty(B.shape),
        z.new_empty((B.shape[0], B.shape[2]) if need_bias else (0,)),
    )


def _backward_x_fake(
    dx: Tensor | None,
    x: Tensor,
    dz: Tensor,
    A: Tensor,
    rows: Tensor,
    offsets: Tensor | None,
    accumulate: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:
    return dz.new_empty(A.shape), dz.new_empty((A.shape[0], A.shape[2]) if need_bias else (0,))


_forward = register_op(
    "routed_adapter_forward(Tensor(a!) y, Tensor x, Tensor A, Tensor B, Tensor rows, Tensor? rows_b, Tensor? offsets,"
    " Tensor? bias_a, Tensor? bias_b, str activation, float scale) -> Tensor",
    routed_adapter_forward_reference,
    _fake,
)
_backward_dy = register_op(
    "routed_adapter_backward_dy(Tensor dy, Tensor z, Tensor B, Tensor rows, Tensor? offsets, str activation, float scale,"
    " bool need_bias) -> (Tensor, Tensor, Tensor)",
    routed_adapter_backward_dy_reference,
    _backward_dy_fake,
)
_backward_x = register_op(
    "routed_adapter_backward_x(Tensor(a!)? dx, Tensor x, Tensor dz, Tensor A, Tensor rows, Tensor? offsets, bool accumulate,"
    " bool need_bias) -> (Tensor, Tensor)",
    routed_adapter_backward_x_reference,
    _backward_x_fake,
)
