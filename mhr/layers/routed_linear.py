"""A Linear with a routed bank of low-rank adapters: Poly, MHR and their relatives (arXiv 2202.13914, 2211.03831)."""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.layers.routed import RoutedLayer
from mhr.ops import mix, routed_adapter, routed_linear
from mhr.routing import Router, RoutingState


class RoutedLinear(RoutedLayer):
    """`y = base(x) + (alpha / r) * (x A_t) B_t` with `A_t = concat_h sum_s w[t,h,s] A[h,s]` and B_t likewise.

    x [B, ..., I], y [B, ..., O]; bank_a [H, S, I/H, R], bank_b [H, S, R, O/H]. A's heads are blocks of the input, B's
    of the output.

    A plain nn.Linear takes the fused path that owns the frozen product; any other base (quantised, Conv1D, one with
    hooks) is called as it is and the adapter is added into its output.
    """

    bank_names = ("bank_a", "bank_b")
    bank_a: nn.Parameter
    bank_b: nn.Parameter

    def __init__(self, name: str, base: nn.Module, config: AdapterConfig, router: Router, state: RoutingState):
        super().__init__(name, base, config, router, state)
        self.check_heads(input=self.in_features, output=self.out_features)
        self.scaling = config.scaling
        self.reset()

    def fresh(self, name: str, n_skills: int) -> Tensor:
        heads, rank, fan_in = self.router.n_heads, self.config.rank, self.in_features
        if name == "bank_b":
            return torch.zeros(heads, n_skills, rank, self.out_features // heads, **self.place())
        bound = math.sqrt(heads / fan_in) if self.config.init == "peft" else math.sqrt(1 / 3 / fan_in)
        return torch.empty(heads, n_skills, fan_in // heads, rank, **self.place()).uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        weights, batch = self.routing(x)
        base = self.base
        if _is_plain(base):
            return routed_linear(x, base.weight, base.bias, self.bank_a, self.bank_b, weights, batch.rows, self.scaling)
        a, b = self.factors(weights)
        y = base(x)
        return routed_adapter(y, x.to(y.dtype), a, b, batch.rows, self.scaling)

    def factors(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The plain LoRAs that `weights` [U, H, S] amount to: A [U, I, R] and B [U, R, O], without the scaling."""
        a, b = mix([self.bank_a, self.bank_b], [weights, weights], [1, 2])
        return a, b


def _is_plain(base: nn.Module) -> TypeGuard[nn.Linear]:
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
