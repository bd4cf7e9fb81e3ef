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
    runs: Sequence[int] | None = None,
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
        runs: how many banks, one behind the other, lie side by side in one result, `[U, H*P, Q_1 + Q_2 + ...]`, whose rows begin at
            multiples of 16 bytes: the factors A of layers that read the same x (`routed_linears`). None means that each has its own.

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
    if runs is not None:  # whose sum is asked of their shapes first
        for i, bank in enumerate(banks):
            check(bank.dim() == 4, f"mhr::mix: banks[{i}] must have shape (H, S, P, Q), got {tuple(bank.shape)}")
    mixed = list(apply(_Mix, out_dtype, tuple(head_dims), tuple(rows), tuple(runs or ()), *banks, *distinct))
    if runs is not None and not torch.compiler.is_compiling():
        for factor in mixed:
            if factor.dim() == 3 and factor.stride(1) > factor.shape[2]:
                factor.mhr_zeros_behind = True
    return mixed


def has_zeros_behind(factor: Tensor) -> bool:
    """Whether what fills the rows of a factor up to 16 bytes is zeros, as `mix` leaves them for runs. A view of another tensor, or what was
    detached from one, has anything there, so that mix marks its own."""
    return getattr(factor, "mhr_zeros_behind", False)


class _Mix(torch.autograd.Function):
    op = "mix"

    @staticmethod
    def forward(
        ctx: Any,
        out_dtype: torch.dtype | None,
        head_dims: tuple[int, ...],
        rows: tuple[int, ...],
        runs: tuple[int, ...],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        n = len(tensors) - (max(rows) + 1 if rows else 0)
        tensors = tuple(t.contiguous() for t in tensors)
        banks, weights = tensors[:n], [tensors[n + i] for i in rows]
        ctx.head_dims, ctx.rows, ctx.runs = head_dims, rows, runs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        if not runs:
            return tuple(_forward(banks, weights, head_dims, out_dtype))
        check_runs("mix", runs)
        check(sum(runs) == n, f"mhr::mix: runs must add up to the {n} banks, got {list(runs)}")
        shapes = check_banks("mix", banks, weights, head_dims)
        first = [sum(runs[:i]) for i in range(len(runs))]
        columns = [sum(shape[2] for shape in shapes[i : i + n]) for i, n in zip(first, runs, strict=True)]
        rooms = [
            banks[i].new_empty(
                *shapes[i][:2], _padded(width, out_dtype or banks[i].dtype) if n > 1 else width, dtype=out_dtype
            )
            for i, n, width in zip(first, runs, columns, strict=True)
        ]
        _beside(rooms, banks, weights, head_dims, runs)
        return tuple(_columns(room, width) for room, width in zip(rooms, columns, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_order("mix")
        n, tensors, found = len(ctx.head_dims), ctx.saved_tensors, [None] * len(ctx.saved_tensors)
        if ctx.runs:
            grads = tuple(_by_bank(grads, tensors[:n], ctx.runs))
        # Factors that nothing was made of have no gradient, and weights that served none of the others.
        mixed = [i for i in range(n) if grads[i] is not None]
        distinct = list(dict.fromkeys(ctx.rows[i] for i in mixed))
        if not mixed:
            return None, None, None, None, *found
        need = ctx.needs_input_grad[4:]
        need_banks, need_weights = any(need[i] for i in mixed), any(need[n + i] for i in distinct)
        values = _backward(
            [g if g.is_cuda and ctx.runs else g.contiguous() for g in grads if g is not None],
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
        return None, None, None, None, *found


def _padded(columns: int, dtype: torch.dtype) -> int:
    """Columns of a row that is a multiple of 16 bytes, as the adapter's kernels read it."""
    vector = 16 // dtype.itemsize
    return -(-columns // vector) * vector


def _columns(room: Tensor, width: int) -> Tensor:
    """The first columns of a tensor that nobody else knows, as a tensor of its own."""
    if room.shape[-1] == width:
        return room
    if torch.compiler.is_compiling():  # which traces no set_
        return room[..., :width].contiguous()
    return room.new_empty(0).set_(room.untyped_storage(), 0, (*room.shape[:-1], width), room.stride())


def _by_bank(grads: Sequence[Tensor | None], banks: Sequence[Tensor], runs: Sequence[int]) -> list[Tensor | None]:
    """The gradient of each bank's factor, out of those of the runs: views, where a run is longer than one."""
    found: list[Tensor | None] = []
    for grad, n in zip(grads, runs, strict=True):
        if grad is None or n == 1:
            found += [grad] * n
        else:
            found += grad.contiguous().split([bank.shape[3] for bank in banks[len(found) : len(found) + n]], -1)
    return found


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


def check_runs(op: str, runs: Sequence[int]) -> None:
    for n in runs:
        check(n > 0, f"mhr::{op}: a run of {n} banks")


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


def mix_beside_reference(
    mixed: Sequence[Tensor],
    banks: Sequence[Tensor],
    weights: Sequence[Tensor],
    head_dims: Sequence[int],
    runs: Sequence[int],
) -> None:
    """Writes the factors of run i side by side into mixed[i] `[U, P, C]`, and zeros into the columns that are left."""
    op = "mix_beside"
    shapes = check_banks(op, banks, weights, head_dims)
    check_runs(op, runs)
    check(
        sum(runs) == len(banks) and len(runs) == len(mixed),
        f"mhr::{op}: got {len(banks)} banks and {len(mixed)} results for the runs {list(runs)}",
    )
    i = 0
    for room, n in zip(mixed, runs, strict=True):
        width = sum(shape[2] for shape in shapes[i : i + n])
        for k in range(i, i + n):
            check(n == 1 or head_dims[k] == 1, f"mhr::{op}: only factors A lie side by side")
            check(
                room.dim() == 3 and shapes[k][:2] == tuple(room.shape[:2]) and width <= room.shape[2],
                f"mhr::{op}: mixed has room for {tuple(room.shape)}, banks[{k}] gives {shapes[k]} of {width} columns",
            )
        parts = mix_reference(banks[i : i + n], weights[i : i + n], head_dims[i : i + n], room.dtype)
        room[..., :width] = torch.cat(parts, -1)
        room[..., width:] = 0
        i += n


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


def _beside_fake(*_: Any) -> None:
    return None


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
_beside = register_op(
    "mix_beside(Tensor(a!)[] mixed, Tensor[] banks, Tensor[] weights, int[] head_dims, int[] runs) -> ()",
    mix_beside_reference,
    _beside_fake,
)
_backward = register_op(
    "mix_backward(Tensor[] grads, Tensor[] banks, Tensor[] weights, int[] rows, int[] head_dims, bool need_banks,"
    " bool need_weights) -> Tensor[]",
    mix_backward_reference,
    _backward_fake,
)
