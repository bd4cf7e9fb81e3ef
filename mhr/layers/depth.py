"""Where the state of recurrent adapters begins, in a pass through a model, and which layers it may go through.

The state belongs to the tokens of an encoder or decoder. It begins at 0 whenever that is called, so that generation, whose every step
calls the decoder for new tokens, and a part of the model that is called alone need no more than this; at a call of the whole model it does
so as well (`RoutingState.enter`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from mhr.errors import TargetError
from mhr.layers.layouts import RELATIVE, classes
from mhr.layers.siblings import CROSS
from mhr.layers.structure import block_parts
from mhr.routing import RoutingState

BLOCKS = {
    "modeling_reformer.ReformerLayer": "is part of a reversible block, which is computed again without the states of its tokens",
    "modeling_pegasus_x.PegasusXEncoderLayer": "is called with global tokens too",
}
"""Classes of blocks whose layers do not see the tokens of a row once, and what they do."""


def begin_at_stacks(model: nn.Module, layers: Iterable[str], state: RoutingState) -> list[RemovableHandle]:
    """Have the state begin at 0 in each call of what holds the lists of blocks that the layers stand in."""
    stacks = {_stack(model, layer) for layer in layers}
    return [model.get_submodule(name).register_forward_pre_hook(partial(_begin, state)) for name in sorted(stacks)]


def check_depth(model: nn.Module, layers: Iterable[str]) -> None:
    """Raise TargetError, naming the layer, for one that is not called once for all tokens of its encoder or decoder."""
    chunk = getattr(getattr(model, "config", None), "chunk_size_feed_forward", 0)
    for layer in layers:
        parts = layer.split(".")
        around = [model.get_submodule(".".join(parts[:end])) for end in range(len(parts))]
        if CROSS.search(layer):
            why = "is part of cross-attention, which reads the tokens of another sequence"
        elif RELATIVE in classes(around[-1]):
            why = "is called with relative positions too, which are no tokens"
        elif blocks := [name for module in around for name in classes(module) if name in BLOCKS]:
            why = BLOCKS[blocks[0]]
        elif chunk:
            why = f"may be called with {chunk} tokens at a time: set chunk_size_feed_forward to 0 in the model's configuration, as"
        else:
            continue
        raise TargetError(
            f"layer {layer!r} {why}, and a recurrent adapter follows each token through the layers: leave it out of targets, or set adapter to "
            "'bottleneck'"
        )


def _stack(model: nn.Module, layer: str) -> str:
    """What holds the list of blocks around a layer; the model where there is none."""
    end = block_parts(model, layer)
    return "" if end is None else ".".join(layer.split(".")[: end - 2])


def _begin(state: RoutingState, *_: Any) -> None:
    state.carried = {}
