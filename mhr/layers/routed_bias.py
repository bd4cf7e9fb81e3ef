"""A layer whose bias a task shifts: BitFit (arXiv 2106.10199), routed by any method."""

from __future__ import annotations

from torch import Tensor, nn

from mhr.layers.routed import Segments
from mhr.layers.routed_vectors import RoutedVectors, grouped, per_token


class RoutedBias(RoutedVectors):
    """`y = base(x) + h_t` with `h_t = concat_h sum_s w[t,h,s] h[h,s]`; bank_shift (h) [H, S, 1, O/H], zeros at first.

    The base is a Linear or a layer norm with a bias b [O], so that this is the layer with the bias b + h_t, and dL/dh = dL/db where
    one skill serves all tasks. In plain torch, for rows of one task with weights w [H, S]:

        h = torch.einsum("hs,hso->ho", w, bank_shift.squeeze(2)).flatten()    # [O]
        y = base(x) + h
    """

    bank_names = ("bank_shift",)
    head_dims = (2,)
    bank_shift: nn.Parameter

    def adapted(self, x: Tensor, segments: Segments) -> Tensor:
        weights, rows, _, offsets = segments[:4]
        y = self.base_output(x)
        (shift,) = self.mixed(weights)
        tokens = grouped(y, rows.shape[0], offsets)
        return (tokens + per_token(shift.squeeze(1)[rows].to(y.dtype), tokens, offsets)).view(y.shape)
