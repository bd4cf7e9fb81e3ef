"""A Linear with a routed bank of low-rank adapters: Poly, MHR and their relatives (arXiv 2202.13914, 2211.03831)."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhr.config import AdapterConfig
from mhr.layers.routed import RoutedLayer, Segments
from mhr.ops import routed_adapter, routed_linear
from mhr.ops.autograd import is_closed_view
from mhr.routing import Router, RoutingState, TokenRouter


class RoutedLinear(RoutedLayer):
    """`y = base(x) + (alpha / r) * (x A_t) B_t` with `A_t = concat_h sum_s w[t,h,s] A[h,s]` and B_t likewise.

    x [B, ..., I], y [B, ..., O]; bank_a [H, S, I/H, R], bank_b [H, S, R, O/H]. A's heads are blocks of the input, B's
    of the output. With `AdapterConfig.dropout` the x of the adapter loses some of its elements while training. In plain torch,
    for rows of one task with weights w [H, S]:

        A = torch.einsum("hs,hsir->hir", w, bank_a).flatten(0, 1)                    # [I, R]
        B = torch.einsum("hs,hsro->hro", w, bank_b).permute(1, 0, 2).flatten(1)      # [R, O]
        y = base(x) + alpha / rank * (x @ A) @ B

    A plain nn.Linear takes the fused path that owns the frozen product; any other base (quantised, Conv1D, one with
    hooks) is called as it is and the adapter is added into its output, as where x loses elements.
    """

    bank_names = ("bank_a", "bank_b")
    head_dims = (1, 2)
    bank_a: nn.Parameter
    bank_b: nn.Parameter

    def __init__(self, name: str, base: nn.Module, config: AdapterConfig, router: Router, state: RoutingState):
        super().__init__(name, base, config, router, state)
        self.check_heads(input=self.in_features, output=self.out_features)
        self.scaling = config.scaling
        self.mask: Tensor | None
        self.register_buffer("mask", None, persistent=False)
        self.reset()

    def keep_to(self, mask: Tensor) -> None:
        """Let factor B [R, O] be other than 0 only where `mask` is true: what is 0 elsewhere stays so, for it has no gradient there."""
        rank, heads = self.config.rank, self.router.n_heads
        by_head = mask.view(rank, heads, -1).transpose(0, 1)[:, None]  # [H, 1, R, O/H]
        self.mask = by_head.to(self.bank()["bank_b"])

    def factors(self) -> dict[str, Tensor]:
        bank = super().factors()
        if self.mask is not None:
            bank["bank_b"] = bank["bank_b"] * self.mask
        return bank

    def fresh(self, name: str, n_skills: int) -> Tensor:
        heads, rank, fan_in = self.router.n_heads, self.config.rank, self.in_features
        if name == "bank_b":
            return torch.zeros(heads, n_skills, rank, self.out_features // heads, **self.place())
        bound = math.sqrt(heads / fan_in) if self.config.init == "peft" else math.sqrt(1 / 3 / fan_in)
        bound *= self.skill_size
        # Skills that are drawn (AdaMix) begin as copies of one.
        n_drawn = 1 if self.config.routing.drawn else n_skills
        a = torch.empty(heads, n_drawn, fan_in // heads, rank, **self.place()).uniform_(-bound, bound)
        return a.repeat(1, n_skills // n_drawn, 1, 1)

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        shared = self.state.shared
        if shared is not None and not more and not self.state.disabled and not torch.compiler.is_compiling():
            y = shared.output(self, x)
            if y is not None:
                return y
        return super().forward(x, *more)

    def adapted(self, x: Tensor, segments: Segments) -> Tensor:
        weights, rows, rows_b, offsets, transform = segments
        base = self.base
        dropout = self.config.dropout if self.training else 0.0
        if not dropout and is_plain(base):
            mixed = self.mixed_before(x, segments)
            if mixed is not None:
                factors = mixed[0], mixed[1], None
                return routed_linear(
                    x, base.weight, base.bias, *factors, rows, self.scaling, rows_b=rows_b, offsets=offsets
                )
            bank = self.factors()
            a, b = self.by_side(self.one_hot() if weights is None else weights)
            return routed_linear(
                x,
                base.weight,
                base.bias,
                bank["bank_a"],
                bank["bank_b"],
                a,
                rows,
                self.scaling,
                weights_b=None if a is b else b,
                rows_b=rows_b,
                offsets=offsets,
            )
        a, b = self.mixed(weights) if transform is None else self.transformed(weights, transform)
        y = self.own_output(x)
        if dropout:
            x = F.dropout(x, dropout)
        return routed_adapter(y, x.to(y.dtype), a, b, rows, self.scaling, rows_b=rows_b, offsets=offsets)

    def own_output(self, x: Tensor) -> Tensor:
        """`base(x)`, to be changed in place: a copy where a hook may have kept it, and of a view that autograd does not follow, such as
        one out of a custom Function (bitsandbytes, 8 bits)."""
        y = self.base_output(x)
        if torch.compiler.is_compiling():
            return y
        closed = torch.is_grad_enabled() and is_closed_view(y)
        return y.clone() if closed or self.base._forward_hooks else y

    def mixed_before(self, x: Tensor, segments: Segments) -> list[Tensor] | None:
        """Factors [U, I, R] and [U, R, O] in the dtype that is computed in on x; None where the layer's kernel is to mix them."""
        dtype = computed_in(x)
        if segments.transform is not None:
            return [factor.to(dtype) for factor in self.transformed(segments.weights, segments.transform)]
        together = self.together(segments.weights)
        return together if together is not None and together[0].dtype == dtype else None

    def transformed(self, weights: Tensor | None, transform: Tensor) -> list[Tensor]:
        """`mixed(weights)` with A [U, I, R] times the matrices `transform` [U, R, R], in the bank's precision."""
        a, b = self.mixed(weights)
        with torch.autocast(a.device.type, enabled=False):
            return [a @ transform.to(a.dtype), b]

    def by_token(self, x: Tensor) -> Tensor:
        router = self.router
        if not isinstance(router, TokenRouter):
            return super().by_token(x)
        base, (a, b) = self.base, self.factors().values()
        y = F.linear(x, base.weight, base.bias) if is_plain(base) else self.own_output(x)
        return router.add_to(y, x, a.squeeze(0), b.squeeze(0), self.scaling)

    def updates(self, x: Tensor, h: Tensor) -> Tensor:
        a, b = (bank.squeeze(0).to(h.dtype) for bank in self.factors().values())
        return self.scaling * torch.einsum("ni,sir,sro->nso", x.to(h.dtype), a, b)

    def mixed_dtype(self) -> torch.dtype | None:
        if self.config.routing.transforms:
            return None
        dropout = self.config.dropout if self.training else 0.0
        return computed_in(self.base.weight) if not dropout and is_plain(self.base) else None

    def one_hot(self) -> Tensor:
        """Weights [S, 1, S] that make each skill a row of its own: little work beside a product that is fused."""
        even = self.router.even
        return torch.eye(self.router.n_skills, dtype=even.dtype, device=even.device)[:, None]


def computed_in(x: Tensor) -> torch.dtype:
    """The dtype in which F.linear computes on x, or on what has its dtype: under autocast not x's."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def is_plain(base: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether calling `base` is F.linear(x, weight, bias) and nothing else."""
    return (
        type(base) is nn.Linear
        and type(base._parameters.get("weight")) is nn.Parameter  # a quantised one is a Parameter of another class
        and not base._forward_hooks
        and not base._forward_pre_hooks
        and not base._backward_hooks
        and not base._backward_pre_hooks
        and "forward" not in base.__dict__
    )
