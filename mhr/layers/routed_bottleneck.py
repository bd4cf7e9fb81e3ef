"""A Linear with a routed bank of bottleneck adapters behind it: the modules of AdaMix (arXiv 2205.12410), routed by any method."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhr.config import AdapterConfig
from mhr.layers.routed import RoutedLayer, Segments
from mhr.layers.routed_vectors import grouped, per_token
from mhr.ops import routed_adapter, routed_bottleneck
from mhr.ops.checks import accumulator
from mhr.ops.normed_adapter import NORM_EPS, fold_norm, normed_adapter
from mhr.routing import Router, RoutingState

INIT_STD = 0.02


class RoutedBottleneck(RoutedLayer):
    """`y = h + gelu(h A_t + a_t) B_t + b_t` with `h = base(x)`, `A_t = concat_h sum_s w[t,h,s] A[h,s]` and likewise B_t, b_t.

    y, h [B, ..., O]; bank_a [H, S, O/H, R], bank_b [H, S, R, O/H], bias_a [H, S, 1, R], bias_b [H, S, 1, O/H]. The heads of
    A, B and b are blocks of h's features; a_t is the mean over heads of `sum_s w[t,h,s] a[h,s]`. A, B ~ N(0, 0.02), biases 0.
    In plain torch, for rows of one task with weights w [H, S]:

        A, a = torch.einsum("hs,hsir->hir", w, bank_a).flatten(0, 1), torch.einsum("hs,hsxr->r", w, bias_a) / H
        B, b = (torch.einsum("hs,hsro->hro", w, t).permute(1, 0, 2).flatten(1) for t in (bank_b, bias_b))
        y = h + F.gelu(h @ A + a) @ B + b

    With `AdapterConfig.norm` a layer norm stands before the sum, `y = h + LN(gelu(h A_t + a_t) B_t + b_t)`, whose scale and shift are
    the task's too (HyperFormer, arXiv 2106.04489): scale_b and shift_b [H, S, 1, O/H], as b; scale_b ~ N(0, 0.02), shift_b 0.
    """

    bank_names: tuple[str, ...] = ("bank_a", "bias_a", "bank_b", "bias_b")
    head_dims: tuple[int, ...] = (1, 1, 2, 2)
    bank_a: nn.Parameter
    bias_a: nn.Parameter
    bank_b: nn.Parameter
    bias_b: nn.Parameter

    def __init__(self, name: str, base: nn.Module, config: AdapterConfig, router: Router, state: RoutingState):
        super().__init__(name, base, config, router, state)
        self.check_heads(output=self.out_features)
        if config.norm:
            self.bank_names, self.head_dims = (*self.bank_names, "scale_b", "shift_b"), (*self.head_dims, 2, 2)
        self.reset()

    def fresh(self, name: str, n_skills: int) -> Tensor:
        heads, rank = self.router.n_heads, self.config.rank
        width = self.out_features // heads
        sizes = {"bank_a": (width, rank), "bank_b": (rank, width), "bias_a": (1, rank)}.get(name, (1, width))
        values = torch.zeros(heads, n_skills, *sizes, **self.place())
        return values.normal_(0.0, INIT_STD * self.skill_size) if name in ("bank_a", "bank_b", "scale_b") else values

    def adapted(self, x: Tensor, segments: Segments) -> Tensor:
        weights, rows, rows_b, offsets = segments[:4]
        h = self.base_output(x)
        if self.config.norm:
            return self.normalised(h, segments)
        together = self.together(weights)
        if together is not None:
            factor_a, bias_a, factor_b, bias_b = together  # [U, O, R], [U, H, R], [U, R, O], [U, 1, O]
            mixed = factor_a[None], bias_a.mean(1, keepdim=True)[None], factor_b[None], bias_b[None]
            return routed_bottleneck(h, *mixed, None, rows, rows_b=rows_b, offsets=offsets)
        a, b = (None, None) if weights is None else self.by_side(weights)
        bank_a, bias_a, bank_b, bias_b = self.factors().values()
        bank = bank_a, bias_a, bank_b, bias_b
        return routed_bottleneck(h, *bank, a, rows, weights_b=None if a is b else b, rows_b=rows_b, offsets=offsets)

    def updates(self, x: Tensor, h: Tensor) -> Tensor:
        a, bias_a, b, bias_b, *norm = (bank.squeeze(0).to(h.dtype) for bank in self.factors().values())
        hidden = F.gelu(torch.einsum("no,sor->nsr", h, a) + bias_a[:, 0])
        update = torch.einsum("nsr,sro->nso", hidden, b) + bias_b[:, 0]
        if norm:
            scale, shift = (t[:, 0] for t in norm)
            update = F.layer_norm(update, update.shape[-1:], eps=NORM_EPS) * scale + shift
        return update

    def ready(self, mixed: list[Tensor]) -> list[Tensor]:
        if not self.config.norm:
            return mixed
        a, bias_a, b, bias_b, scale, shift = (t.to(accumulator(t.dtype)) for t in mixed)
        bias_b, scale, shift = (t.squeeze(1) for t in (bias_b, scale, shift))
        if not _folds(a):
            return [a, b, bias_a.mean(1), bias_b, scale, shift]
        return [a, bias_a.mean(1), *fold_norm(b, bias_b, scale), shift]

    def normalised(self, h: Tensor, segments: Segments) -> Tensor:
        """The output with a layer norm, for h = base(x)."""
        weights, rows, rows_b, offsets = segments[:4]
        if _folds(h):
            a, bias_a, deviation, lines, shift = self.mixed(weights)
            return normed_adapter(h, a, bias_a, deviation, lines, shift, rows, rows_b=rows_b, offsets=offsets)
        a, b, bias_a, bias_b, scale, shift = self.mixed(weights)
        return normed_in_steps(h, a, b, bias_a, bias_b, scale, shift, rows, rows_b=rows_b, offsets=offsets)


def _folds(at: Tensor) -> bool:
    """Whether the norm is folded into the factors: beside a tensor on the CPU. A GPU is slow at that, which takes more but smaller steps."""
    return at.device.type == "cpu"


def normed_in_steps(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    bias_a: Tensor,
    bias_b: Tensor,
    scale: Tensor,
    shift: Tensor,
    rows: Tensor,
    *,
    rows_b: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """`normed_adapter` in other steps, one after the other: the adapter, the norm, the scale and the shift."""
    update = routed_adapter(
        torch.zeros_like(x),
        x,
        A,
        B,
        rows,
        rows_b=rows_b,
        offsets=offsets,
        bias_a=bias_a,
        bias_b=bias_b,
        activation="gelu",
    )
    tokens = grouped(F.layer_norm(update, update.shape[-1:], eps=NORM_EPS), rows.shape[0], offsets)
    at = rows if rows_b is None else rows_b
    scale, shift = (per_token(t[at].to(x.dtype), tokens, offsets) for t in (scale, shift))
    return x + (tokens * scale + shift).to(x.dtype).view(x.shape)
