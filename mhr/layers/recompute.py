"""Gradient checkpointing of a routed model: the recomputation sees the routing that the forward pass saw.

A block is computed again during backward, when the model may already be at another batch (gradient accumulation, a second
stochastic pass) or at none. So each call of the checkpoint function carries its batch with it, whatever the mode
(`use_reentrant` or not). What the layers of the call computed together goes along where the second computation is for its saved tensors
alone; the re-entrant one has a backward pass of its own, which would run through the one mix of all blocks once for each.
What recurrent adapters hand on is an input and an output of the block, since gradients run through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mhr.errors import ConfigError
from mhr.layers.bank import bank_of
from mhr.routing import RoutingState

FUNCTION = "_gradient_checkpointing_func"  # where transformers keeps the checkpoint function of each block


class RoutedCheckpoint:
    """A checkpoint function `(block, *args) -> output` that runs the block under the batch of the moment it was called."""

    def __init__(self, function: Callable[..., Any], state: RoutingState):
        self.function = function
        self.state = state

    def __call__(self, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state = self.state
        batch, disabled, weights, factors = state.batch, state.disabled, state.weights, state.factors
        shared = None if state.shared is None else state.shared.again()
        if getattr(self.function, "keywords", {}).get("use_reentrant") is not False:
            weights = factors = shared = None
        given = list(state.carried)
        handed: list[str] = []
        several = False

        def routed(*block_args: Any, **block_kwargs: Any) -> Any:
            nonlocal handed, several
            own = None if shared is None else shared.again()
            carried = dict(zip(given, block_args, strict=False))
            with state.use(batch, disabled, (weights, factors, own), carried):
                output = block(*block_args[len(given) :], **block_kwargs)
                if own is not None:
                    own.finish()
                handed, several = list(state.carried), isinstance(output, tuple)
                if not handed:
                    return output
                # Side by side: of what lies deeper, the re-entrant function sees no gradients.
                return (*(output if several else [output]), *state.carried.values())

        output = self.function(routed, *state.carried.values(), *args, **kwargs)
        if handed:
            state.carried = dict(zip(handed, output[-len(handed) :], strict=True))
            output = output[: -len(handed)] if several else output[0]
        return output


def set_gradient_checkpointing(model: nn.Module, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """In front of a model's `_set_gradient_checkpointing`: the same switch for a model with a bank. Raises ConfigError for virtual tokens,
    which come in through the cache that blocks have none of when they are computed again."""
    bank = bank_of(model)
    if bank.config.prepended:
        raise ConfigError(
            f"gradient checkpointing computes blocks again without a cache, in which adapter {bank.config.adapter!r} puts virtual tokens: "
            "leave it out"
        )
    original(*args, **kwargs)
    keep_routing(model, bank.state)


def keep_routing(model: nn.Module, state: RoutingState) -> None:
    """Have the blocks that are checkpointed keep the routing of their batch."""
    for module in model.modules():
        function = module.__dict__.get(FUNCTION)
        if function is not None and not isinstance(function, RoutedCheckpoint):
            setattr(module, FUNCTION, RoutedCheckpoint(function, state))


def undo_keep_routing(model: nn.Module) -> None:
    """Undo `keep_routing`."""
    for module in model.modules():
        function = module.__dict__.get(FUNCTION)
        if isinstance(function, RoutedCheckpoint):
            setattr(module, FUNCTION, function.function)
