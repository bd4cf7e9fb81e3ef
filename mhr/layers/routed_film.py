"""A Linear whose outputs a task scales and shifts: FiLM (arXiv 1709.07871), by task as in VTAGML (arXiv 2308.12372), routed by any method."""

from __future__ import annotations

from torch import Tensor, nn

from mhr.layers.routed import Segments
from mhr.layers.routed_vectors import RoutedVectors, grouped, per_token


class RoutedFilm(RoutedVectors):
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

    def adapted(self, x: Tensor, segments: Segments) -> Tensor:
        weights, rows, _, offsets = segments[:4]
        y = self.base_output(x)
        scale, shift = (found.squeeze(1) for found in self.mixed(weights))
        tokens = grouped(y, rows.shape[0], offsets)
        scale, shift = (per_token(t[rows].to(y.dtype), tokens, offsets) for t in (1 + scale, shift))
        return (tokens * scale + shift).view(y.shape)
