"""Where virtual tokens come into the calls of a model, as PEFT has it.

prompt, decoder            what the model keeps of P virtual embeddings stands in its cache before it reads: a decoder reads them first,
                           and what they are does not depend on what follows
prompt, encoder-decoder    P virtual embeddings before those that the encoder reads, and so in what the decoder looks back on
prefix                     P virtual keys and values in the cache of the decoder's self-attention

Positions of real tokens count from P in the first and last, as masks do; outputs are those of real tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache

from mhr.errors import TargetError
from mhr.layers.bank import AdapterBank
from mhr.layers.routed_virtual import KeysAndValues, RoutedPrefix, RoutedPrompt, RoutedVirtual, layers_of
from mhr.routing import RoutingBatch


def virtual_layer(bank: AdapterBank) -> RoutedVirtual | None:
    """The layer of a bank that has virtual tokens; None for other kinds of adapters."""
    return next((layer for layer in bank.layers.values() if isinstance(layer, RoutedVirtual)), None)


def put_in_front(model: nn.Module, layer: RoutedVirtual, batch: RoutingBatch, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of the model, with the virtual tokens of the batch's tasks in front. Raises TargetError for a call with a
    mask, a cache or packed rows that they have no place in."""
    if batch.shape is not None:
        raise _refusal(layer, "packed rows", "leave packing out")
    both = bool(model.config.is_encoder_decoder)  # type: ignore[union-attr]
    if both and isinstance(layer, RoutedPrompt):
        return {**kwargs, "attention_mask": _longer(layer, kwargs.get("attention_mask"))}
    found = dict(kwargs)
    side = "decoder_attention_mask" if both else "attention_mask"
    found[side] = _longer(layer, kwargs.get(side))
    if not both and kwargs.get("position_ids") is not None:
        found["position_ids"] = kwargs["position_ids"] + layer.config.virtual_tokens
    past = kwargs.get("past_key_values")
    if past is not None and past.get_seq_length() > 0:
        return found
    if isinstance(past, Cache) and type(past) not in (DynamicCache, EncoderDecoderCache):
        raise _refusal(layer, f"a {type(past).__name__}", "use a cache that grows (cache dynamic)")
    names = ("decoder_input_ids", "decoder_inputs_embeds", "labels") if both else ("input_ids", "inputs_embeds")
    rows = next(kwargs[name].shape[0] for name in names if kwargs.get(name) is not None)
    cache = DynamicCache(_by_row(_read(model, layer, batch), batch, rows))
    found["past_key_values"] = EncoderDecoderCache(cache, DynamicCache()) if both else cache
    return found


def put_before_encoder(
    model: nn.Module, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call of the model's encoder, with virtual embeddings in front of those of real tokens."""
    bank: AdapterBank = model.mhr  # type: ignore[assignment]
    layer = virtual_layer(bank)
    if bank.state.disabled or not isinstance(layer, RoutedPrompt):
        return args, kwargs
    found = dict(kwargs)
    if args:
        found["input_ids"], *more = args
        if more:
            raise _refusal(layer, "an encoder that is called by positions", "call the model")
    embedded = found.get("inputs_embeds")
    if embedded is None:
        embedded = encoder.get_input_embeddings()(found["input_ids"])  # type: ignore[operator]
    batch = bank.state.current()
    prompt = _of_rows(layer.tokens(batch).to(embedded.dtype), batch, embedded.shape[0])
    found |= {"input_ids": None, "inputs_embeds": torch.cat([prompt, embedded], 1)}
    mask = found.get("attention_mask")
    if mask is not None and mask.shape[-1] == embedded.shape[1]:  # the model's own call has made it longer already
        found["attention_mask"] = _longer(layer, mask)
    return (), found


def _read(model: nn.Module, layer: RoutedVirtual, batch: RoutingBatch) -> KeysAndValues:
    """Keys and values [U, heads, P, size] of the distinct tasks' virtual tokens."""
    tokens = layer.tokens(batch)
    dtype = layer.weight.dtype
    if isinstance(layer, RoutedPrefix):
        return layer.keys_and_values(tokens.to(dtype))
    inner = model.base_model  # without the output layer
    return layers_of(inner(inputs_embeds=tokens.to(dtype), use_cache=True).past_key_values, model)  # type: ignore[operator]


def _by_row(layers: KeysAndValues, batch: RoutingBatch, rows: int) -> KeysAndValues:
    return [(_of_rows(keys, batch, rows), _of_rows(values, batch, rows)) for keys, values in layers]


def _of_rows(values: Tensor, batch: RoutingBatch, rows: int) -> Tensor:
    """Those [U, ...] of distinct tasks for the rows of a call, [rows, ...]: an example's rows lie side by side."""
    of = batch.rows.repeat_interleave(rows // batch.rows.shape[0])
    return values[of]


def _longer(layer: RoutedVirtual, mask: Any) -> Tensor | None:
    """A mask [B, L] with virtual tokens in front, [B, P + L]."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise _refusal(layer, "a mask that is not of one row an example, [B, L]", "leave it, or a static cache, out")
    return torch.cat([mask.new_ones(mask.shape[0], layer.config.virtual_tokens), mask], 1)


def _refusal(layer: RoutedVirtual, what: str, fix: str) -> TargetError:
    return TargetError(
        f"adapter {layer.config.adapter!r} puts virtual tokens in front of a call, and has no place in {what}: {fix}"
    )
