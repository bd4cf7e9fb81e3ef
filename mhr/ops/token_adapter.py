"""token_adapter: low-rank adapters chosen token by token, k of S, added to y."""

from __future__ import annotations

import torch
from torch import Tensor

from mhr.ops.checks import check, check_shape
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
        chosen: int64 `[N, k]`, the adapters that each token takes; shares: `[N, k]`, how much of each, any float dtype.
        scale: lora_alpha / rank.

    Pairs of a token and an adapter are sorted by adapter, and each adapter computes on its tokens as one segment of
    `routed_adapter`: N k R (I + O) multiplications, whatever S is. Differentiable once in y, x, A, B and shares. No value is read
    on the host. Routing of Arrow (arXiv 2405.11157) and PHATGOOSE (arXiv 2402.05859). Raises RuntimeError where shapes do not fit.
    """
    op, n = "token_adapter", n_tokens(x)
    check(chosen.dim() == 2, f"mhr::{op}: chosen must have shape (N, k), got {tuple(chosen.shape)}")
    k = chosen.shape[1]
    check_shape(op, "chosen", chosen, "N k", (n, k))
    check_shape(op, "shares", shares, "N k", (n, k))
    check_shape(op, "y", y, "... O", (*x.shape[:-1], B.shape[-1]))
    pairs = chosen.flatten()
    adapters = torch.arange(A.shape[0], device=x.device)
    ordered, order = pairs.sort(stable=True)
    tokens = order // k
    offsets = torch.cat([torch.searchsorted(ordered, adapters), adapters.new_full((1,), n * k)])
    given = x.reshape(n, x.shape[-1]).index_select(0, tokens)
    update = routed_adapter(given.new_zeros(n * k, B.shape[-1]), given, A, B, adapters, scale, offsets=offsets)
    update = update * shares.flatten().index_select(0, order)[:, None].to(update.dtype)
    return y.reshape(n, B.shape[-1]).index_add(0, tokens, update).view(y.shape)
