"""normed_adapter: a residual bottleneck with a layer norm, folded into the up projection, segment by segment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mhr.ops.autograd import apply, refuse_second_order
from mhr.ops.routed_adapter import _backward_dy, _backward_x, _forward

NORM_EPS = 1e-5


def fold_norm(B: Tensor, bias_b: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """What `normed_adapter` takes in place of B `[U, R, O]`, bias_b and scale `[U, O]`: L `[U, R + 1, K]`, K = min(R + 1, O), and
    `lines` = s * M `[U, R + 1, O]`.

    The update u = z B + b, less its mean over the features, is (z, 1) M: M holds B and b less their means. With M^T = Q L^T, Q of orthonormal
    columns, its variance is |(z, 1) L|^2 / O.
    """
    with torch.autocast(B.device.type, enabled=False):
        lines = torch.cat([B, bias_b[:, None]], 1)
        lines = lines - lines.mean(-1, keepdim=True)
        with torch.no_grad():  # any basis of these lines gives the same lengths
            basis = torch.linalg.qr(lines.mT).Q
        return lines @ basis, lines * scale[:, None]


def normed_adapter(
    x: Tensor,
    A: Tensor,
    bias_a: Tensor,
    L: Tensor,
    lines: Tensor,
    shift: Tensor,
    rows: Tensor,
    *,
    rows_b: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """y = x + s_v * LN(gelu(x A_u + a_u) B_v + b_v) + t_v for each token segment g, u = rows[g], v = rows_b[g]; LN over the O features.

    In plain torch, for x of `[G, L, O]`, a segment each, and L, lines of `fold_norm`::

        z = F.gelu(x @ A[rows] + bias_a[rows, None])
        z = torch.cat([z, torch.ones_like(z[..., :1])], -1)
        deviation = ((z @ L[rows_b]).square().sum(-1, keepdim=True) / O + 1e-5).sqrt()
        y = x + (z / deviation) @ lines[rows_b] + shift[rows_b, None]

    So the norm divides R + 1 numbers, not the O that are made of them, and takes no pass over `[N, O]` of its own.

    Args:
        x: `[..., O]`, N tokens.
        A: `[U, O, R]`; bias_a: `[U, R]`; L: `[U', R + 1, K]`; lines: `[U', R + 1, O]`; shift: `[U', O]`; float32, float64 beside a float64 x.
        rows, rows_b, offsets: as of `routed_adapter`, rows from 0.

    Returns y `[..., O]`, a new tensor. Differentiable once in every float argument; saved for backward beside x: 16 N (R + 1) bytes. The
    adapters of HyperFormer (arXiv 2106.04489).
    """
    return apply(_NormedAdapter, x, A, bias_a, L, lines, shift, rows, rows_b, offsets)


class _NormedAdapter(torch.autograd.Function):
    op = "normed_adapter"

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        bias_a: Tensor,
        L: Tensor,
        lines: Tensor,
        shift: Tensor,
        rows: Tensor,
        rows_b: Tensor | None,
        offsets: Tensor | None,
    ) -> Tensor:
        x, A, bias_a, lines, shift, rows = (t.contiguous() for t in (x, A, bias_a, lines, shift, rows))
        rows_b, offsets = (t if t is None else t.contiguous() for t in (rows_b, offsets))
        n, rank, width = lines.shape[0], A.shape[2], lines.shape[2]
        at = rows if rows_b is None else rows_b
        spread = L[:, :rank].contiguous()
        deviations = x.new_zeros(*x.shape[:-1], L.shape[2])
        z = _forward(deviations, x, A, spread, rows, rows_b, offsets, bias_a, L[:, rank].contiguous(), "gelu", 1.0)
        hidden = F.gelu(z)
        deviations = deviations.view(-1, L.shape[2]).to(z.dtype)
        inverse = (deviations.square().sum(-1, keepdim=True) / width + NORM_EPS).rsqrt()
        normed = torch.cat([hidden * inverse, inverse], -1).to(x.dtype).view(*x.shape[:-1], rank + 1)
        eye = torch.eye(rank + 1, dtype=A.dtype, device=A.device).expand(n, -1, -1).contiguous()
        y = x.clone()
        normed = _forward(y, normed, eye, lines, at, None, offsets, None, shift, "none", 1.0)
        ctx.save_for_backward(x, A, spread, lines, rows, rows_b, offsets, z, hidden, deviations, inverse, normed)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order("normed_adapter")
        x, A, spread, lines, rows, rows_b, offsets, z, hidden, deviations, inverse, normed = ctx.saved_tensors
        dy, rank = dy.contiguous(), A.shape[2]
        at = rows if rows_b is None else rows_b
        d_normed, d_lines, d_shift = _backward_dy(dy, normed, lines, at, offsets, "none", 1.0, True)
        d_normed, d_inverse = d_normed.split([rank, 1], -1)
        d_inverse = d_inverse + (d_normed * hidden).sum(-1, keepdim=True)
        d_deviations = deviations * (d_inverse * inverse.pow(3) / -x.shape[-1])
        d_hidden, d_spread, d_last = _backward_dy(d_deviations, hidden, spread, at, offsets, "none", 1.0, True)
        dz = torch.ops.aten.gelu_backward(torch.addcmul(d_hidden, d_normed, inverse), z)
        dx = dy.clone() if ctx.needs_input_grad[0] else None  # of the residual; the adapter's is added to it
        d_a, d_bias_a = _backward_x(dx, x, dz, A, rows, offsets, True, True)
        d_l = torch.cat([d_spread, d_last[:, None]], 1)
        return dx, d_a, d_bias_a, d_l, d_lines, d_shift, None, None, None
