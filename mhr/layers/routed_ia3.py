"""A Linear with a routed bank of output scalings: IA3 (arXiv 2205.05638) routed as Poly-IA3 (arXiv 2211.03831)."""

from __future__ import annotations

import torch
from torch import Tensor

from mhr.layers.routed import RoutedLayer
from mhr.ops import mix


class RoutedIA3(RoutedLayer):
    """`y = base(x) * v_t` with `v_t = concat_h sum_s w[t,h,s] v[h,s]`; bank_v [H, S, 1, O/H], all ones at first."""

    bank_names = ("bank_v",)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.check_heads(output=self.out_features)
        self.reset()

    def fresh(self, name: str, n_skills: int) -> Tensor:
        heads = self.config.n_heads
        return torch.ones(heads, n_skills, 1, self.out_features // heads, device=self._device())

    def forward(self, x: Tensor) -> Tensor:
        weights, batch = self.routing(x)
        y = self.base(x)
        scale = self.vectors(weights).to(y.dtype)[batch.rows]  # [B, O]
        # Rows of y are examples times beams or choices, each example's together.
        grouped = y.reshape(scale.shape[0], -1, self.out_features)
        return (grouped * scale[:, None]).reshape(y.shape)

    def vectors(self, weights: Tensor) -> Tensor:
        """The scalings [U, O] that `weights` [U, H, S] amount to."""
        (mixed,) = mix([self.bank_v], [weights], [2])
        return mixed[:, 0]
