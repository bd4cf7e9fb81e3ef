"""token_adapter: low-rank adapters chosen token by token, k of S; token_routed_adapter: with the choice, for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhr.ops.autograd import apart, changed, refuse_transforms
from mhr.ops.checks import accumulator, check, check_shape
from mhr.ops.native import register_op
from mhr.ops.routed_adapter import n_tokens, routed_adapter


def token_adapter(
    y: Tensor, x: Tensor, A: Tensor, B: Tensor, chosen: Tensor, shares: Tensor, scale: float = 1.0
) -> Tensor:
    """y[n] + scale * sum_j shares[n, j] (x[n] A_u) B_u, u = chosen[n, j], for each token n; a new tensor.

    In plain torch::

        h = torch.einsum("ni,nkir->nkr", x, A[chosen])
        y = y + scale * torch.einsum("nk,nkr,nkro->no", shares, h, B[chosen])

    Args:
        y: `[..., O]`, N tokens in all.
        x: `[..., I]`, the same leading dimensions and dtype.
        A: `[S, I, R]`; B: `[S, R, O]`; the dtype of x or float32.
        chosen: int64 `[N, k]`, the adapters that each token takes, in 0..S-1; shares: `[N, k]`, how much of each, any float dtype.
        scale: lora_alpha / rank.

    Pairs of a token and an adapter are sorted by adapter, and each adapter computes on its tokens as one segment of
    `routed_adapter`: N k R (I + O) multiplications, whatever S is. What an adapter gives is rounded to the dtype of x, the sum over
    them once; memory beyond that of the result: N k (I + 2 O) elements, and 3 N O of the sum. Deterministic. Differentiable once in y, x, A, B and shares. On a GPU no value is
    read on the host: what a token takes of an adapter that does not exist is NaN there. Routing of Arrow (arXiv 2405.11157) and PHATGOOSE
    (arXiv 2402.05859). Raises RuntimeError where shapes or values do not fit.
    """
    op, n, n_adapters = "token_adapter", n_tokens(x), A.shape[0]
    check(chosen.dim() == 2, f"mhr::{op}: chosen must have shape (N, k), got {tuple(chosen.shape)}")
    k = chosen.shape[1]
    check_shape(op, "chosen", chosen, "N k", (n, k))
    check_shape(op, "shares", shares, "N k", (n, k))
    check_shape(op, "y", y, "... O", (*x.shape[:-1], B.shape[-1]))
    existing = chosen.clamp(0, n_adapters - 1)
    if chosen.device.type == "cpu":
        torch._assert_async((chosen == existing).all(), f"mhr::{op}: chosen must lie in 0..{n_adapters - 1}")
    else:
        shares, chosen = shares.masked_fill(chosen != existing, torch.nan), existing
    ordered, order = chosen.flatten().sort(stable=True)
    adapters, place = torch.arange(n_adapters + 1, device=x.device), torch.empty_like(order)
    place[order] = torch.arange(n * k, device=x.device)
    offsets = torch.searchsorted(ordered, adapters)
    given = _Repeated.apply(x.reshape(n, x.shape[-1]), order, place, k)
    update = routed_adapter(given.new_zeros(n * k, B.shape[-1]), given, A, B, adapters[:-1], scale, offsets=offsets)
    update = _Permuted.apply(update, place, order).view(n, k, B.shape[-1])
    wide = accumulator(y.dtype)
    total = y.reshape(n, B.shape[-1]).to(wide)
    for j in range(k):
        total = total + update[:, j].to(wide) * shares[:, j, None].to(wide)
    return total.to(y.dtype).view(y.shape)


class _Repeated(torch.autograd.Function):
    """Tokens [N, I], each once for every adapter that it takes, in the order of pairs: [N k, I]. Backward adds up a token's gradients in their
    order, where that of `index_select` would add them by atomics on a GPU. place: of each pair in the order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(place)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (place,) = ctx.saved_tensors
        return grad.index_select(0, place).view(-1, ctx.k, grad.shape[-1]).sum(1), None, None, None


class _Permuted(torch.autograd.Function):
    """Rows of a tensor in another order, whose inverse is `back`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back), None, None


def token_scores(x: Tensor, directions: Tensor, normalised: bool = False) -> Tensor:
    """Scores [N, S] of tokens x `[N, I]` by directions `[S, I]`, in the directions' dtype: `|x . d|`, or, normalised,
    `x . d / sqrt(var(x) + 1e-5)`, var over the I features. Differentiable."""
    x = x.to(directions.dtype)
    found = x @ directions.T
    if not normalised:
        return found.abs()
    return found * (x.var(-1, keepdim=True, unbiased=False) + 1e-5).rsqrt()


def token_shares(scores: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """What tokens with these scores `[N, S]` take: the adapters of the k highest, int64 [N, k], and the softmax over these, [N, k]."""
    best, chosen = scores.topk(top_k, dim=-1)
    return chosen, torch.softmax(best / temperature, -1)


def token_routed_adapter(
    y: Tensor,
    x: Tensor,
    directions: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    top_k: int,
    temperature: float = 1.0,
    normalised: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """`token_adapter` by the shares that `token_shares` gives to `token_scores`; IN PLACE in y, which it returns. Not differentiable:
    refused where autograd is on and a tensor asks for a gradient.

    On the CPU one kernel does all of it, tile by tile: x and y come from memory once, whatever k is.

    Args:
        y: `[..., O]`, contiguous; x: `[..., I]`, the same leading dimensions and dtype; it may share memory with y, and is then copied.
        directions: `[S, I]`, float32 (float64 for float64).
        A: `[S, I, R]`; B: `[S, R, O]`; the dtype of x or float32.

    Raises RuntimeError where shapes or dtypes do not fit, for a top_k outside 1..S and a temperature that is not positive.
    """
    op = "token_routed_adapter"
    refuse_transforms(op)
    if torch.is_grad_enabled():
        for name, t in (("y", y), ("x", x), ("directions", directions), ("A", A), ("B", B)):
            check(
                not t.requires_grad,
                f"mhr::{op} has no gradient, and {name} asks for one: call it under torch.no_grad(), or token_adapter",
            )
    x = apart(x, y)
    dense = x.contiguous(), directions.contiguous(), A.contiguous(), B.contiguous()
    _forward(y, *dense, top_k, temperature, normalised, scale)
    changed(y)
    return y


def token_routed_adapter_reference(
    y: Tensor,
    x: Tensor,
    directions: Tensor,
    A: Tensor,
    B: Tensor,
    top_k: int,
    temperature: float,
    normalised: bool,
    scale: float,
) -> None:
    _check(y, x, directions, A, B, top_k, temperature)
    n = n_tokens(x)
    tokens, out = x.reshape(n, x.shape[-1]), y.view(n, y.shape[-1])
    chosen, shares = token_shares(token_scores(tokens, directions, normalised), top_k, temperature)
    for s in range(A.shape[0]):
        token, j = (chosen == s).nonzero(as_tuple=True)
        update = tokens[token] @ A[s].to(x.dtype) @ B[s].to(x.dtype)
        out.index_add_(0, token, update * (scale * shares[token, j, None]).to(update.dtype))


def _check(y: Tensor, x: Tensor, directions: Tensor, A: Tensor, B: Tensor, top_k: int, temperature: float) -> None:
    op = "token_routed_adapter"
    check(A.dim() == 3 and B.dim() == 3, f"mhr::{op}: A and B must have three axes, got {A.dim()} and {B.dim()}")
    check_shape(op, "A", A, "S I R", (A.shape[0], x.shape[-1], A.shape[2]))
    check_shape(op, "B", B, "S R O", (A.shape[0], A.shape[2], B.shape[2]))
    check_shape(op, "directions", directions, "S I", (A.shape[0], x.shape[-1]))
    check(
        directions.dtype == accumulator(x.dtype),
        f"mhr::{op}: directions must be {accumulator(x.dtype)} beside x of {x.dtype}, got {directions.dtype}",
    )
    check_shape(op, "y", y, "... O", (*x.shape[:-1], B.shape[2]))
    check(1 <= top_k <= A.shape[0], f"mhr::{op}: top_k must lie in 1..{A.shape[0]}, got {top_k}")
    check(temperature > 0, f"mhr::{op}: temperature must be positive, got {temperature}")


def _fake(
    y: Tensor,
    x: Tensor,
    directions: Tensor,
    A: Tensor,
    B: Tensor,
    top_k: int,
    temperature: float,
    normalised: bool,
    scale: float,
) -> None:
    _check(y, x, directions, A, B, top_k, temperature)


_forward = register_op(
    "token_routed_adapter(Tensor(a!) y, Tensor x, Tensor directions, Tensor A, Tensor B, int top_k, float temperature,"
    " bool normalised, float scale) -> ()",
    token_routed_adapter_reference,
    _fake,
)
