"""Gated keys and values in front of those of a self-attention, in the function that transformers computes attention by.

    attention(q, [G P_K; K], [G P_V; V])                        one G for each example
    softmax([G_l (q_l P_K); q_l K]) [G_l P_V; V]                one for each token l, of its query

The prefix has no position, is hidden from no token, and is in no cache. Attention whose configuration names this function hands on to the
one that it named before.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface

from mhr.errors import TargetError

if TYPE_CHECKING:
    from mhr.layers.routed_gated import RoutedGatedPrefix
    from mhr.routing import RoutingState

NAME = "mhr_prefix"
"""Of the function, and of the attribute under which an attention module has the layer of its prefix."""

FUNCTIONS = ("eager", "sdpa")
"""Implementations of attention whose masks a prefix can be put into."""


def check_attention(name: str, attention: Any) -> None:
    """Raise TargetError for an attention module that does not compute by the function that its configuration names, or whose function has
    no place for a prefix."""
    code = getattr(inspect.unwrap(type(attention).forward), "__code__", None)
    by_name = code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names
    told = hasattr(attention, "is_causal") and hasattr(getattr(attention, "config", None), "_attn_implementation")
    if not (by_name and told):
        raise TargetError(
            f"attention {name!r} is a {type(attention).__name__}, which does not compute by a function that a prefix has a place in, or "
            "does not say whether it is causal: choose another kind of adapter"
        )
    _check_function(name, attention.config._attn_implementation)


def _check_function(name: str, implementation: str | None) -> None:
    if (implementation or "eager") not in FUNCTIONS:
        raise TargetError(
            f"attention {name!r} computes by {implementation}, which has no place for a prefix: load the model with attn "
            f"{' or '.join(FUNCTIONS)}"
        )


def put_in_attention(layers: Iterable[RoutedGatedPrefix]) -> None:
    """Have the attention of each layer see its prefix."""
    for layer in layers:
        attention: Any = layer.attention
        before = attention.config
        # Of its own, so that masks are made, and the model is stored, as its configuration says.
        attention.config = copy.copy(before)
        attention.config._attn_implementation_internal = NAME
        attention.__dict__[NAME] = layer, before  # past nn.Module, which would register the layer


def take_out_of_attention(layers: Iterable[RoutedGatedPrefix]) -> None:
    """Undo `put_in_attention`."""
    for layer in layers:
        attention: Any = layer.attention
        attention.config = attention.__dict__.pop(NAME)[1]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The attention function of transformers, with the prefix of `module` where its layer has computed one for the call."""
    layer, config = module.__dict__[NAME]
    name = config._attn_implementation or "eager"
    eager = inspect.unwrap(type(module).forward).__globals__["eager_attention_forward"]
    function: Callable[..., Any] = AttentionInterface().get_interface(name, eager)
    found = layer.state.prefixes.pop(layer.name, None)
    if found is None:
        return function(module, query, key, value, attention_mask, *args, **kwargs)
    _check_function(layer.name.rpartition(".")[0], name)
    keys, values, gate = found
    rows, _, length, size = query.shape
    gate = gate.to(key.dtype)
    front = [_by_head(t, key, rows).to(key.dtype) for t in (keys, values)]
    count = front[0].shape[2]
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = F.pad(kwargs["position_bias"], (count, 0))
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    mask = _longer(attention_mask, key.shape[2], count)
    if mask is None and causal and length > 1 and name == "sdpa":  # which would be causal in the prefix too
        mask = query.new_ones(length, count + key.shape[2], dtype=torch.bool).tril(count)[None, None]
    if gate.shape[1] == 1:
        scaled = (gate[:, None] * t for t in front)
        both = (torch.cat([t, own], 2) for t, own in zip(scaled, (key, value), strict=True))
        return function(module, query, *both, mask, *args, **kwargs)
    # Of a query twice as long, the second half meets the prefix alone, and of what comes out the second half comes of it.
    kwargs["scaling"] = size**-0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
    twice = torch.cat([query, gate[:, None] * query], -1)
    beside = [
        torch.cat([F.pad(t, (t.shape[-1], 0)), F.pad(own, (0, own.shape[-1]))], 2)
        for t, own in zip(front, (key, value), strict=True)
    ]
    output, *more = function(module, twice, *beside, mask, *args, **kwargs)
    own, of_prefix = output.chunk(2, -1)  # [B, L, heads, size] each
    return own + gate[..., None] * of_prefix, *more


AttentionInterface.register(NAME, attend)


def _by_head(prefix: Tensor, own: Tensor, rows: int) -> Tensor:
    """A prefix [G, P, O] as keys or values [B, heads, P, size] beside `own` [B, heads, ..., size]; an example's rows lie side by side."""
    split = prefix.view(*prefix.shape[:2], own.shape[1], own.shape[3]).transpose(1, 2)
    return split.repeat_interleave(rows // split.shape[0], 0)


def _longer(mask: Tensor | None, length: int, count: int) -> Tensor | None:
    """A mask [B, heads, L, K], of booleans or to be added, with `count` columns in front that all tokens see."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise TargetError("a prefix has its place in a mask [B, 1, L, K] alone: load the model with attn eager or sdpa")
    return F.pad(mask[..., :length], (count, 0), value=mask.dtype == torch.bool)


def see_tokens(model: nn.Module, state: RoutingState) -> RemovableHandle:
    """Have each call of an encoder, or of the encoder of `model`, say which of its tokens are padding (`RoutingBatch.mask`)."""
    both = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    stack: Any = model.get_encoder() if both else getattr(model, "base_model", model)  # type: ignore[operator]
    return stack.register_forward_pre_hook(partial(_see, state), with_kwargs=True)


def _see(state: RoutingState, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if state.disabled or state.batch is None:
        return
    given = dict(zip(list(inspect.signature(type(stack).forward).parameters)[1:], args, strict=False)) | kwargs
    mask = given.get("attention_mask")
    if mask is None:
        name = "inputs_embeds" if given.get("input_ids") is None else "input_ids"
        mask = given[name].new_ones(given[name].shape[:2], dtype=torch.long)
    state.batch = state.batch.masked(mask)
