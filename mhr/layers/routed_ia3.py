"""A Linear with a routed bank of output scalings: IA3 (arXiv 2205.05638) routed as Poly-IA3 (arXiv 2211.03831)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.layers.routed import RoutedLayer, Segments
from mhr.routing import Router, RoutingState


class RoutedIA3(RoutedLayer):
    """`y = base(x) * v_t` with `v_t = concat_h sum_s w[t,h,s] v[h,s]`; bank_v [H, S, 1, O/H], all ones at first.

    In plain torch, for rows of one task with weights w [H, S]:

        v = torch.einsum("hs,hso->ho", w, bank_v.squeeze(2)).flatten()    # [O]
        y = base(x) * v
    """

    bank_names = ("bank_v",)
    head_dims = (2,)
    bank_v: nn.Parameter

    def __init__(self, name: str, base: nn.Module, config: AdapterConfig, router: Router, state: RoutingState):
        super().__init__(name, base, config, router, state)
        self.check_heads(output=self.out_features)
        self.reset()

    def fresh(self, name: str, n_skills: int) -> Tensor:
        heads = self.router.n_heads
        return torch.ones(heads, n_skills, 1, self.out_features // heads, **self.place())

    def adapted(self, x: Tensor, segments: Segments) -> Tensor:
        weights, rows, _, offsets = segments[:4]
        y = self.base_output(x)
        scale = self.vectors(weights).to(y.dtype)[rows]  # [G, O]
        tokens = grouped(y, scale.shape[0], offsets)
        return (tokens * per_token(scale, tokens, offsets)).view(y.shape)

    def vectors(self, weights: Tensor | None) -> Tensor:
        """The scalings [U, O] that `weights` [U, H, S] amount to; without weights, those of every skill."""
        (vectors,) = self.mixed(weights)
        return vectors.squeeze(1)


def grouped(y: Tensor, segments: int, offsets: Tensor | None) -> Tensor:
    """y [..., O] as [G, N / G, O] where its segments are equal, otherwise as [N, O]."""
    # A segment's rows of y lie together: an example's tokens, its beams, its choices.
    return y.reshape(segments, -1, y.shape[-1]) if offsets is None else y.reshape(-1, y.shape[-1])


def per_token(values: Tensor, tokens: Tensor, offsets: Tensor | None) -> Tensor:
    """A vector for each segment, `values` [G, O], as it is broadcast over `grouped` tokens."""
    if offsets is None:
        return values[:, None]
    return values.repeat_interleave(offsets.diff(), 0, output_size=tokens.shape[0])
