"""Prompts and prefixes as PEFT folders of prompt tuning and prefix tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mhr.adapters.layer import PrefixTokens, VirtualTokens
from mhr.adapters.plain import PlainAdapter
from mhr.errors import CheckpointError
from mhr.layers.routed_virtual import layers_and_heads

PEFT_TYPES = {"prompt": "PROMPT_TUNING", "prefix": "PREFIX_TUNING"}
TENSOR = "prompt_embeddings"


def virtual_tokens(plain: PlainAdapter) -> VirtualTokens:
    """The virtual tokens that an adapter is. Raises CheckpointError where it brings modules whole, for which PEFT has no place here."""
    if plain.states:
        raise CheckpointError(
            f"{plain.name} brings module {next(iter(plain.states))!r} whole, which PEFT does not store beside virtual tokens: write it as an "
            "adapter of ours (--to mhr)"
        )
    (found,) = plain.layers.values()
    assert isinstance(found, VirtualTokens)
    return found


def prompt_tensors(tokens: VirtualTokens, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """adapter_model.safetensors for `config` as `prompt_config` has it: the virtual tokens [P, W].

    In an encoder-decoder PEFT lays a prefix out twice and gives layer i of the decoder the pair 2 i of keys and values, so that its
    folder has a pair of zeros after that of each layer.
    """
    values = tokens.tokens
    if isinstance(tokens, PrefixTokens) and config["num_transformer_submodules"] == 2:
        pairs = values.view(len(values), -1, 2 * config["token_dim"])
        values = torch.stack([pairs, torch.zeros_like(pairs)], 2).flatten(1)
    return {TENSOR: values.contiguous()}


def prompt_config(
    tokens: VirtualTokens, model: nn.Module | None, base: str, revision: str | None, described: Mapping[str, Any]
) -> dict[str, Any]:
    """adapter_config.json. described: what it says of the base model in any folder; model: the base model, without weights.

    A prefix has 2 numbers of token_dim = heads x size for each of num_layers layers. Raises CheckpointError where the model that says how many
    these are is not here.
    """
    count, width = tokens.tokens.shape
    config: dict[str, Any] = {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "num_virtual_tokens": count,
        "peft_type": PEFT_TYPES[tokens.kind],
        "revision": revision,
        **described,
    }
    if not isinstance(
        tokens, PrefixTokens
    ):  # of which PEFT has one prompt, and none before the decoder of an encoder-decoder
        return config | {"token_dim": width, "num_transformer_submodules": 1, "num_layers": 1, "num_attention_heads": 1}
    if model is None:
        raise CheckpointError(
            f"base model {base!r} is not here to say how many layers and heads a prefix of it has: name where it is with --model, or write an "
            "adapter of ours (--to mhr)"
        )
    layers, heads = layers_and_heads(model.config)
    twice = 2 if model.config.is_encoder_decoder else 1  # type: ignore[union-attr]
    return config | {
        "token_dim": width // (2 * layers),
        "num_transformer_submodules": twice,
        "num_layers": twice * layers,
        "num_attention_heads": heads,
        "prefix_projection": False,
        "encoder_hidden_size": width // (2 * layers),
    }
