"""A Linear whose outputs a task scales and shifts: FiLM (arXiv 1709.07871), by task as in VTAGML (arXiv 2308.12372), routed by any method."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.layers.routed import RoutedLayer, Segments
from mhr.layers.routed_ia3 import grouped, per_token
from mhr.routing import Router, RoutingState


class RoutedFilm(RoutedLayer):
    """`y = (1 + g_t) * base(x) + h_t` with `g_t = concat_h sum_s w[t,h,s] g[h,s]` and h_t likewise; bank_scale (g) and bank_shift (h)
    [H, S, 1, O/H], all zeros at first.

    In plain torch, for rows of one task with weights w [H, S]:

        g, h = (torch.einsum("hs,hso->ho", w, t.squeeze(2)).flatten() for t in (bank_scale, bank_shift))    # [O]
        y = (1 + g) * base(x) + h
    """

    bank_names = ("bank_scale", "bank_shift")
    head_dims = (2, 2)
    bank_scale: nn.Parameter
    bank_shift: nn.Parameter

    def __init__(self, name: str, base: nn.Module, config: AdapterConfig, router: Router, state: RoutingState):
        super().__init__(name, base, config, router, state)
        self.check_heads(output=self.out_features)
        self.reset()

    def fresh(self, name: str, n_skills: int) -> Tensor:
        heads = self.router.n_heads
        return torch.zeros(heads, n_skills, 1, self.out_features // heads, **self.place())

    def adapted(self, x: Tensor, segments: Segments) -> Tensor:
        weights, rows, _, offsets = segments[:4]
        y = self.base_output(x)
        scale, shift = (found.squeeze(1) for found in self.mixed(weights))
        tokens = grouped(y, rows.shape[0], offsets)
        scale, shift = (per_token(t[rows].to(y.dtype), tokens, offsets) for t in (1 + scale, shift))
        return (tokens * scale + shift).view(y.shape)
