"""Gradient checkpointing of a routed model: the recomputation sees the routing that the forward pass saw.

A block is computed again during backward, when the model may already be at another batch (gradient accumulation, a second
stochastic pass) or at none. So each call of the checkpoint function carries its batch with it, whatever the mode
(`use_reentrant` or not).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mhr.routing import RoutingState


class RoutedCheckpoint:
    """A checkpoint function `(block, *args) -> output` that runs the block under the batch of the moment it was called."""

    def __init__(self, function: Callable[..., Any], state: RoutingState):
        self.function = function
        self.state = state

    def __call__(self, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        batch = self.state.batch

        def routed(*block_args: Any, **block_kwargs: Any) -> Any:
            with self.state.use(batch):
                return block(*block_args, **block_kwargs)

        return self.function(routed, *args, **kwargs)


def wrap_checkpointing(model: nn.Module, state: RoutingState) -> None:
    """Wrap the checkpoint functions that transformers has put on the model's blocks."""
    for module in model.modules():
        function = module.__dict__.get("_gradient_checkpointing_func")
        if function is not None and not isinstance(function, RoutedCheckpoint):
            module._gradient_checkpointing_func = RoutedCheckpoint(function, state)  # type: ignore[assignment]


def unwrap_checkpointing(model: nn.Module) -> None:
    """Undo `wrap_checkpointing`."""
    for module in model.modules():
        function = module.__dict__.get("_gradient_checkpointing_func")
        if isinstance(function, RoutedCheckpoint):
            module._gradient_checkpointing_func = function.function  # type: ignore[assignment]
