"""A Linear with a routed bank of output scalings: IA3 (arXiv 2205.05638) routed as Poly-IA3 (arXiv 2211.03831)."""

from __future__ import annotations

from torch import Tensor, nn

from mhr.layers.routed import Segments
from mhr.layers.routed_vectors import RoutedVectors, grouped, per_token


class RoutedIA3(RoutedVectors):
    """`y = base(x) * v_t` with `v_t = concat_h sum_s w[t,h,s] v[h,s]`; bank_v [H, S, 1, O/H], all ones at first.

    In plain torch, for rows of one task with weights w [H, S]:

        v = torch.einsum("hs,hso->ho", w, bank_v.squeeze(2)).flatten()    # [O]
        y = base(x) * v
    """

    bank_names = ("bank_v",)
    head_dims = (2,)
    initial = 1.0
    bank_v: nn.Parameter

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
