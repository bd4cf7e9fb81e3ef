"""routed_linear: a frozen linear and its routed low-rank update in one autograd node, the hot path of MHR and Poly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mhr.ops.autograd import apply, refuse_second_order
from mhr.ops.checks import accumulator, check
from mhr.ops.mix import check_banks
from mhr.ops.native import register_op
from mhr.ops.routed_adapter import n_tokens

LORA_HEAD_DIMS = (1, 2)
OPERATIONS_OF_A_BYTE = 200  # of an H200 with bfloat16: 790e12 / 4.3e12 is 184; an A100 has 160


def routed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bank_a: Tensor,
    bank_b: Tensor,
    weights: Tensor | None,
    rows: Tensor,
    scale: float = 1.0,
    *,
    weights_b: Tensor | None = None,
    rows_b: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """y = x W^T + bias + scale * (x A_u) B_v for each token segment g, u = rows[g], v = rows_b[g].

    In plain torch, for x of `[G, L, I]`, a segment each::

        A = torch.einsum("uhs,hsir->uhir", weights, bank_a).flatten(1, 2)
        B = torch.einsum("uhs,hsro->urho", weights_b, bank_b).flatten(2)
        y = F.linear(x, weight, bias) + scale * (x @ A[rows]) @ B[rows_b]

    A_u = concat_h sum_s weights[u, h, s] bank_a[h, s] along the input, B_v likewise along the output (with weights_b). Without
    weights both are factors as they are: A_u = bank_a[u] and B_v = bank_b[v], which `mix` may have made.

    Args:
        x: `[..., I]`, N tokens.
        weight: `[O, I]`, bias: `[O]` or None: the linear that is adapted, frozen as a rule.
        bank_a: `[H, S, I/H, R]`; bank_b: `[H, S, R, O/H]`, any float dtype. Without weights `[U, I, R]` and `[U', R, O]`, of
            x's dtype or float32.
        weights: `[U, H, S]`, float32 (float64 with float64 banks), or None; weights_b: `[U', H, S]`, of B where it differs.
        rows: int64 `[G]`, the row of `weights` of each segment, -1 for no adapter; rows_b: of B where it differs.
        scale: lora_alpha / rank.
        offsets: int64 `[G + 1]`, the first token of each segment and the end; None means G equal segments.

    Returns y `[..., O]`. Differentiable once in every float argument (weight and bias too, where they require it). Backward
    mixes again: saved beyond x are the rank-R activation, 4 N R bytes, and the routing weights. Under autocast x, weight and
    bias are cast as for F.linear. Deterministic. Poly and MHR (arXiv 2202.13914, 2211.03831).
    Raises RuntimeError where shapes or dtypes do not fit.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        if x.dtype != torch.float64:
            x, weight = x.to(dtype), weight.to(dtype)
            bias = bias if bias is None else bias.to(dtype)
    if weights is None:
        _check(x, bank_a, bank_b, weights, weights_b)
    first = x.is_cuda and adapter_first(x, weight)
    return apply(
        _RoutedLinear, x, weight, bias, bank_a, bank_b, weights, weights_b, rows, rows_b, offsets, scale, first
    )


def product(dy: Tensor, weight: Tensor) -> Tensor:
    """dy W, which an autocast that backward is run under must not make another dtype than dy's."""
    return (dy @ weight).to(dy.dtype)


def adapter_first(x: Tensor, weight: Tensor) -> bool:
    """Whether the adapter's output is written first and the frozen product added to it (`addmm_`), in place of the reverse.

    Added last, the adapter reads y and writes it again; added to, the product reads it once, which costs nothing where
    arithmetic is what bounds the product: 2 N I O operations for each byte of x, W and y (twice) above what a GPU does in the
    time of a byte.
    """
    n, n_in, n_out = n_tokens(x), x.shape[-1], weight.shape[0]
    return 2 * n * n_in * n_out > OPERATIONS_OF_A_BYTE * x.element_size() * (n * n_in + n_in * n_out + 2 * n * n_out)


class _RoutedLinear(torch.autograd.Function):
    op = "routed_linear"

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        bank_a: Tensor,
        bank_b: Tensor,
        weights: Tensor | None,
        weights_b: Tensor | None,
        rows: Tensor,
        rows_b: Tensor | None,
        offsets: Tensor | None,
        scale: float,
        first: bool,
    ) -> Tensor:
        x, bank_a, bank_b, rows = (t.contiguous() for t in (x, bank_a, bank_b, rows))
        weights, weights_b, rows_b, offsets = (
            t if t is None else t.contiguous() for t in (weights, weights_b, rows_b, offsets)
        )
        routed = bank_a, bank_b, weights, weights_b, rows, rows_b, offsets, scale
        if first:
            y = x.new_empty(*x.shape[:-1], weight.shape[0])
            h = _forward(y, x, bias if bias is None else bias.contiguous(), *routed, False)
            y.view(-1, y.shape[-1]).addmm_(x.view(-1, x.shape[-1]), weight.t())
        else:
            y = F.linear(x, weight, bias)
            h = _forward(y, x, None, *routed, True)
        ctx.scale, ctx.first = scale, first
        ctx.save_for_backward(x, weight, bank_a, bank_b, weights, weights_b, rows, rows_b, offsets, h)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order("routed_linear")
        x, weight, bank_a, bank_b, weights, weights_b, rows, rows_b, offsets, h = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        dy, first = dy.contiguous(), ctx.first
        dx = None if not need_x else torch.empty_like(x) if first else product(dy, weight)
        d_bank_a, d_bank_b, d_weights, d_weights_b = _backward(
            dx, dy, x, h, bank_a, bank_b, weights, weights_b, rows, rows_b, offsets, ctx.scale, not first
        )
        if dx is not None and first:
            dx.view(-1, dx.shape[-1]).addmm_(dy.view(-1, dy.shape[-1]), weight)
        d_weight = d_bias = None
        if need_weight:
            d_weight = dy.flatten(0, -2).T @ x.flatten(0, -2) if x.dim() > 1 else torch.outer(dy, x)
        if need_bias:
            d_bias = dy.sum(tuple(range(dy.dim() - 1)))
        return (
            dx,
            d_weight,
            d_bias,
            d_bank_a,
            d_bank_b,
            None if weights is None else d_weights,
            None if weights_b is None else d_weights_b,
            None,
            None,
            None,
            None,
            None,
        )


def _check(x: Tensor, bank_a: Tensor, bank_b: Tensor, weights: Tensor | None, weights_b: Tensor | None) -> None:
    op = "routed_linear"
    if weights is None:
        check(weights_b is None, f"mhr::{op}: weights_b is given, but not weights")
        for name, axes, factor in (("bank_a", "(U, I, R)", bank_a), ("bank_b", "(U, R, O)", bank_b)):
            check(
                factor.dim() == 3,
                f"mhr::{op}: without weights {name} must have shape {axes}, got {tuple(factor.shape)}",
            )
        (_, n_in, rank), rank_b = bank_a.shape, bank_b.shape[1]
    else:
        both = weights, weights if weights_b is None else weights_b
        (_, n_in, rank), (_, rank_b, _) = check_banks(op, (bank_a, bank_b), both, LORA_HEAD_DIMS)
    check(rank == rank_b, f"mhr::{op}: bank_a has rank {rank}, bank_b {rank_b}")
    check(x.shape[-1] == n_in, f"mhr::{op}: x must have I = {n_in} columns, as bank_a adapts, got {x.shape[-1]}")


# Where no kernel does all in one, the parts serve, each by its own kernel or reference.
def _forward_composite(
    y: Tensor,
    x: Tensor,
    bias: Tensor | None,
    bank_a: Tensor,
    bank_b: Tensor,
    weights: Tensor | None,
    weights_b: Tensor | None,
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
    scale: float,
    accumulate: bool,
) -> Tensor:
    _check(x, bank_a, bank_b, weights, weights_b)
    check(bias is None or not accumulate, "mhr::routed_linear: bias is for a y that is not accumulated into")
    A, B = _mix_factors(x, bank_a, bank_b, weights, weights_b)
    if not accumulate:
        y.copy_(torch.zeros((), dtype=y.dtype, device=y.device) if bias is None else bias)
    return torch.ops.mhr.routed_adapter_forward(y, x, A, B, rows, rows_b, offsets, None, None, "none", scale)


def _mix_factors(
    x: Tensor, bank_a: Tensor, bank_b: Tensor, weights: Tensor | None, weights_b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A `[U, I, R]` and B `[U', R, O]` for tokens of x: in x's dtype, as a matmul of that dtype takes them."""
    if weights is None:
        return bank_a.contiguous(), bank_b.contiguous()
    both = (weights.contiguous(), (weights if weights_b is None else weights_b).contiguous())
    A, B = torch.ops.mhr.mix((bank_a.contiguous(), bank_b.contiguous()), both, LORA_HEAD_DIMS, x.dtype)
    return A, B


def _backward_composite(
    dx: Tensor | None,
    dy: Tensor,
    x: Tensor,
    h: Tensor,
    bank_a: Tensor,
    bank_b: Tensor,
    weights: Tensor | None,
    weights_b: Tensor | None,
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
    scale: float,
    accumulate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ops = torch.ops.mhr
    A, B = _mix_factors(x, bank_a, bank_b, weights, weights_b)
    dz, d_b, _ = ops.routed_adapter_backward_dy(
        dy, h, B, rows if rows_b is None else rows_b, offsets, "none", scale, False
    )
    d_a, _ = ops.routed_adapter_backward_x(dx, x, dz, A, rows, offsets, accumulate, False)
    if weights is None:
        none = d_a.new_empty(0)
        return d_a, d_b, none, none.clone()
    both = (weights.contiguous(), (weights if weights_b is None else weights_b).contiguous())
    d_bank_a, d_bank_b, d_weights, d_weights_b = ops.mix_backward(
        (d_a, d_b), (bank_a.contiguous(), bank_b.contiguous()), both, (0, 1), LORA_HEAD_DIMS, True, True
    )
    if weights_b is None:
        return d_bank_a, d_bank_b, d_weights + d_weights_b, d_weights.new_empty(0)
    return d_bank_a, d_bank_b, d_weights, d_weights_b


def _fake(
    y: Tensor,
    x: Tensor,
    bias: Tensor | None,
    bank_a: Tensor,
    bank_b: Tensor,
    weights: Tensor | None,
    weights_b: Tensor | None,
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
    scale: float,
    accumulate: bool,
) -> Tensor:
    _check(x, bank_a, bank_b, weights, weights_b)
    return x.new_empty((n_tokens(x), bank_a.shape[-1]), dtype=accumulator(x.dtype))


def _backward_fake(
    dx: Tensor | None,
    dy: Tensor,
    x: Tensor,
    h: Tensor,
    bank_a: Tensor,
    bank_b: Tensor,
    weights: Tensor | None,
    weights_b: Tensor | None,
    rows: Tensor,
    rows_b: Tensor | None,
    offsets: Tensor | None,
    scale: float,
    accumulate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = accumulator(x.dtype)
    if weights is None:  # the factors' own gradients, in the precision of their sums
        none = bank_a.new_empty(0, dtype=sums)
        return (
            bank_a.new_empty(bank_a.shape, dtype=sums),
            bank_b.new_empty(bank_b.shape, dtype=sums),
            none,
            none.clone(),
        )
    return (
        bank_a.new_empty(bank_a.shape),
        bank_b.new_empty(bank_b.shape),
        weights.new_empty(weights.shape),
        weights.new_empty((0,) if weights_b is None else weights_b.shape),
    )


_forward = register_op(
    "routed_linear_forward(Tensor(a!) y, Tensor x, Tensor? bias, Tensor bank_a, Tensor bank_b, Tensor? weights,"
    " Tensor? weights_b, Tensor rows, Tensor? rows_b, Tensor? offsets, float scale, bool accumulate) -> Tensor",
    _forward_composite,
    _fake,
)
_backward = register_op(
    "routed_linear_backward(Tensor(a!)? dx, Tensor dy, Tensor x, Tensor h, Tensor bank_a, Tensor bank_b, Tensor? weights,"
    " Tensor? weights_b, Tensor rows, Tensor? rows_b, Tensor? offsets, float scale, bool accumulate)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_composite,
    _backward_fake,
)
