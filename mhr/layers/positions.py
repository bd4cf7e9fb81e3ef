"""DeBERTa's relative positions: projections that are called with one table of positions for all rows of a batch.

With `share_att_key` (DeBERTa-v3) an attention's query and key projections see the rows of the batch and, a second time, the
embeddings [1, P, D] of the relative positions, whose products are then repeated for every row. Where rows are routed differently
these products differ between them, so the attention's bias is computed example by example.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mhr.layers.layouts import RELATIVE, classes
from mhr.routing import RoutingState

METHOD = "disentangled_attention_bias"


def split_relative_positions(model: nn.Module, state: RoutingState) -> None:
    """Have the attention of DeBERTa compute the bias of relative positions under each example's own routing."""
    for module in model.modules():
        if RELATIVE in classes(module):
            module.__dict__[METHOD] = partial(_by_example, module, getattr(module, METHOD), state)


def undo_split_relative_positions(model: nn.Module) -> None:
    """Undo `split_relative_positions`."""
    for module in model.modules():
        if RELATIVE in classes(module):
            del module.__dict__[METHOD]


def _by_example(
    attention: Any,
    bias: Callable[..., Tensor],
    state: RoutingState,
    query: Tensor,
    key: Tensor,
    relative_pos: Tensor | None,
    *rest: Any,
) -> Tensor:
    """query, key [B * heads, L, D / heads]; relative_pos [L, L] or with leading axes of 1, as the encoder makes it."""
    batch = state.batch
    if state.disabled or batch is None or batch.segments == 1:
        return bias(query, key, relative_pos, *rest)
    every = torch.arange(batch.segments, device=query.device).split(1)
    per_example = zip(every, query.chunk(batch.segments), key.chunk(batch.segments), strict=True)
    weights, factors, parts = state.weights, state.factors, []
    for index, q, k in per_example:
        with state.use(batch.take(index)):
            state.weights, state.factors = weights, factors  # by distinct task, whichever examples are left
            parts.append(bias(q, k, relative_pos, *rest))
    return torch.cat(parts)
