"""Gradient checkpointing of a routed model: the recomputation sees the routing that the forward pass saw.

A block is computed again during backward, when the model may already be at another batch (gradient accumulation, a second
stochastic pass) or at none. So each call of the checkpoint function carries its batch with it, whatever the mode
(`use_reentrant` or not).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mhr.layers.bank import AdapterBank
from mhr.routing import RoutingState

FUNCTION = "_gradient_checkpointing_func"  # where transformers keeps the checkpoint function of each block


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


def set_gradient_checkpointing(
    model: nn.Module, original: Callable[..., None], enable: bool = True, **kwargs: Any
) -> None:
    """In front of a model's `_set_gradient_checkpointing`: the same switch for a model with a bank."""
    bank: AdapterBank = model.mhr  # type: ignore[assignment]
    original(enable=enable, **kwargs)
    if enable:
        keep_routing(model, bank)
    else:
        undo_keep_routing(model, bank)


def keep_routing(model: nn.Module, bank: AdapterBank) -> None:
    """Have blocks that are checkpointed keep the routing of their batch, and the frozen embeddings pass gradients on."""
    for module in model.modules():
        function = module.__dict__.get(FUNCTION)
        if function is not None and not isinstance(function, RoutedCheckpoint):
            setattr(module, FUNCTION, RoutedCheckpoint(function, bank.state))
    if not bank.input_grads and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        # Re-entrant checkpointing yields no gradient where no input asks for one, and everything below is frozen.
        model.enable_input_require_grads()  # type: ignore[operator]
        bank.input_grads = True


def undo_keep_routing(model: nn.Module, bank: AdapterBank) -> None:
    """Undo `keep_routing`."""
    for module in model.modules():
        function = module.__dict__.get(FUNCTION)
        if isinstance(function, RoutedCheckpoint):
            setattr(module, FUNCTION, function.function)
    if bank.input_grads:
        model.disable_input_require_grads()  # type: ignore[operator]
        bank.input_grads = False
