"""Layers whose bank is vectors over their outputs, which a task scales or shifts, and how a task's vector meets its tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mhr.config import AdapterConfig
from mhr.layers.routed import RoutedLayer
from mhr.routing import Router, RoutingState


class RoutedVectors(RoutedLayer):
    """A routed layer each of whose bank parameters is [H, S, 1, O/H], `initial` at first; the heads are blocks of its outputs."""

    initial: float = 0.0

    def __init__(self, name: str, base: nn.Module, config: AdapterConfig, router: Router, state: RoutingState):
        super().__init__(name, base, config, router, state)
        self.check_heads(output=self.out_features)
        self.reset()

    def fresh(self, name: str, n_skills: int) -> Tensor:
        heads = self.router.n_heads
        return torch.full((heads, n_skills, 1, self.out_features // heads), self.initial, **self.place())


def grouped(y: Tensor, segments: int, offsets: Tensor | None) -> Tensor:
    """y [..., O] as [G, N / G, O] where its segments are equal, otherwise as [N, O]."""
    # A segment's rows of y lie together: an example's tokens, its beams, its choices.
    return y.reshape(segments, -1, y.shape[-1]) if offsets is None else y.reshape(-1, y.shape[-1])


def per_token(values: Tensor, tokens: Tensor, offsets: Tensor | None) -> Tensor:
    """A vector for each segment, `values` [G, O], as it is broadcast over `grouped` tokens."""
    if offsets is None:
        return values[:, None]
    return values.repeat_interleave(offsets.diff(), 0, output_size=tokens.shape[0])
