"""mix: weighted averages of skill banks, for all layers of a model in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mhr.ops.autograd import apply, refuse_second_order
from mhr.ops.checks import accumulator, check, check_shape
from mhr.ops.native import register_op


def mix(
    banks: Sequence[Tensor],
    weights: Sequence[Tensor],
    head_dims: Sequence[int],
    out_dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """mixed[u, block h] = sum_s weights[u, h, s] * bank[h, s], for each bank of the list.

    In plain torch, for one bank::

        blocks = torch.einsum("uhs,hspq->uhpq", weights, bank)
        mixed = blocks.flatten(1, 2) if head_dim == 1 else blocks.transpose(1, 2).flatten(2)

    Args:
        banks: each `[H, S, P, Q]`, any float dtype.
        weights: each `[U, H, S]`, float32 (float64 with a float64 bank).
        head_dims: where the heads' blocks are joined. 1 joins them along P into `[U, H*P, Q]` (factor A: P = I/H, Q = R);
            2 joins them along Q into `[U, P, H*Q]` (factor B: P = R, Q = O/H; a bias or an IA3 vector is P = 1).
        out_dtype: of the result; None keeps each bank's dtype.

    Sums are held in float32 (float64 for float64) and differentiable in banks and weights. One call may mix banks of
    different sizes, and any number of them. Raises RuntimeError where shapes or dtypes do not fit.
    The average of Polytropon and MHR (arXiv 2202.13914, 2211.03831); with uniform weights and U = 1 it is MHR-mu and
    AdaMix's merge (arXiv 2205.12410).
    """
    # Neighbours often share their weights (A and B of a layer, or all layers), which are given once. Looking back further than
    # at the weights of a layer's two sides would take the square of the number of layers.
    distinct: list[Tensor] = []
    rows: list[int] = []
    for w in weights:
        last = len(distinct) - 1
        row = (
            last
            if last >= 0 and distinct[last] is w
            else last - 1
            if last >= 1 and distinct[last - 1] is w
            else last + 1
        )
        if row > last:
            distinct.append(w)
        rows.append(row)
    return list(apply(_Mix, out_dtype, tuple(head_dims), tuple(rows), *banks, *distinct))


class _Mix(torch.autograd.Function):
    op = "mix"

    @staticmethod
    def forward(
        ctx: Any, out_dtype: torch.dtype | None, head_dims: tuple[int, ...], rows: tuple[int, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        n = len(tensors) - (max(rows) + 1 if rows else 0)
        tensors = tuple(t.contiguous() for t in tensors)
        ctx.head_dims, ctx.rows = head_dims, rows
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(_forward(tensors[:n], [tensors[n + i] for i in rows], head_dims, out_dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_order("mix")
        n, tensors, found = len(ctx.head_dims), ctx.saved_tensors, [None] * len(ctx.saved_tensors)
        # Factors that nothing was made of have no gradient, and weights that served none of the others.
        mixed = [i for i in range(n) if grads[i] is not None]
        distinct = list(dict.fromkeys(ctx.rows[i] for i in mixed))
        if not mixed:
            return None, None, None, *found
        need = ctx.needs_input_grad[3:]
        need_banks, need_weights = any(need[i] for i in mixed), any(need[n + i] for i in distinct)
        values = _backward(
            [g.contiguous() for g in grads if g is not None],
            [tensors[i] for i in mixed],
            [tensors[n + i] for i in distinct],
            [distinct.index(ctx.rows[i]) for i in mixed],
            [ctx.head_dims[i] for i in mixed],
            need_banks,
            need_weights,
        )
        at = (mixed if need_banks else []) + ([n + i for i in distinct] if need_weights else [])
        for i, value in zip(at, values, strict=True):
            found[i] = value
        return None, None, None, *found


def check_banks(
    op: str, banks: Sequence[Tensor], weights: Sequence[Tensor], head_dims: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Checks what mix takes; returns the shape of each mixed factor."""
    check(
        len(banks) == len(weights) == len(head_dims),
        f"mhr::{op}: got {len(banks)} banks, {len(weights)} weights and {len(head_dims)} head_dims",
    )
    shapes = []
    for i, (bank, w, head_dim) in enumerate(zip(banks, weights, head_dims, strict=True)):
        check(bank.dim() == 4, f"mhr::{op}: banks[{i}] must have shape (H, S, P, Q), got {tuple(bank.shape)}")
        check(head_dim in (1, 2), f"mhr::{op}: head_dims[{i}] must be 1 or 2, got {head_dim}")
        n_heads, n_skills, p, q = bank.shape
        n_rows = w.shape[0] if w.dim() else 0
        check_shape(op, f"weights[{i}]", w, "U H S", (n_rows, n_heads, n_skills))
        check(
            w.dtype == accumulator(bank.dtype),
            f"mhr::{op}: weights[{i}] must be {accumulator(bank.dtype)} beside a {bank.dtype} bank, got {w.dtype}",
        )
        shapes.append((n_rows, n_heads * p, q) if head_dim == 1 else (n_rows, p, n_heads * q))
    return shapes


def mix_reference(
    banks: Sequence[Tensor], weights: Sequence[Tensor], head_dims: Sequence[int], out_dtype: torch.dtype | None
) -> list[Tensor]:
    shapes = check_banks("mix", banks, weights, head_dims)
    mixed = []
    for bank, w, head_dim, shape in zip(banks, weights, head_dims, shapes, strict=True):
        equation = "uhs,hspq->uhpq" if head_dim == 1 else "uhs,hspq->uphq"
        blocks = torch.einsum(equation, w, bank.to(w.dtype))
        mixed.append(blocks.reshape(shape).to(out_dtype or bank.dtype).contiguous())
    return mixed


def mix_backward_reference(
    grads: Sequence[Tensor],
    banks: Sequence[Tensor],
    weights: Sequence[Tensor],
    rows: Sequence[int],
    head_dims: Sequence[int],
    need_banks: bool,
    need_weights: bool,
) -> list[Tensor]:
    """Bank i was mixed by weights[rows[i]], whose gradient is the sum over its banks, in their order."""
    shapes = check_banks("mix_backward", banks, [weights[i] for i in rows], head_dims)
    d_banks: list[Tensor] = []
    d_weights: list[Tensor | None] = [None] * len(weights)
    for i, (grad, bank, row, head_dim) in enumerate(zip(grads, banks, rows, head_dims, strict=True)):
        check_shape("mix_backward", f"grads[{i}]", grad, "U P Q", shapes[i])
        w = weights[row]
        n_heads, _, p, q = bank.shape
        blocks = grad.to(w.dtype)
        if head_dim == 1:
            blocks = blocks.reshape(w.shape[0], n_heads, p, q)
        else:
            blocks = blocks.reshape(w.shape[0], p, n_heads, q).transpose(1, 2)
        if need_banks:
            d_banks.append(torch.einsum("uhs,uhpq->hspq", w, blocks).to(bank.dtype).contiguous())
        if need_weights:
            d, so_far = torch.einsum("uhpq,hspq->uhs", blocks, bank.to(w.dtype)).contiguous(), d_weights[row]
            d_weights[row] = d if so_far is None else so_far + d
    return d_banks + [d for d in d_weights if d is not None]


def _fake(
    banks: Sequence[Tensor], weights: Sequence[Tensor], head_dims: Sequence[int], out_dtype: torch.dtype | None
) -> list[Tensor]:
    shapes = check_banks("mix", banks, weights, head_dims)
    return [b.new_empty(shape, dtype=out_dtype or b.dtype) for b, shape in zip(banks, shapes, strict=True)]


def _backward_fake(
    grads: Sequence[Tensor],
    banks: Sequence[Tensor],
    weights: Sequence[Tensor],
    rows: Sequence[int],
    head_dims: Sequence[int],
    need_banks: bool,
    need_weights: bool,
) -> list[Tensor]:
    d_banks = [torch.empty_like(b) for b in banks] if need_banks else []
    return d_banks + ([torch.empty_like(w) for w in weights] if need_weights else [])


_forward = register_op(
    "mix(Tensor[] banks, Tensor[] weights, int[] head_dims, ScalarType? out_dtype) -> Tensor[]", mix_reference, _fake
)
_backward = register_op(
    "mix_backward(Tensor[] grads, Tensor[] banks, Tensor[] weights, int[] rows, int[] head_dims, bool need_banks,"
    " bool need_weights) -> Tensor[]",
    mix_backward_reference,
    _backward_fake,
)
