"""Virtual tokens in front of what a model reads, routed by any method: prompt tuning (arXiv 2104.08691) and prefix tuning (2101.00190)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from mhr.config import AdapterConfig
from mhr.errors import TargetError
from mhr.layers.routed import RoutedLayer, Segments
from mhr.routing import Router, RoutingBatch, RoutingState

PREFIX_STD = 0.02

KeysAndValues = list[tuple[Tensor, Tensor]]
"""What a model has read, by its layers: keys and values [B, heads, P, size]."""


class RoutedVirtual(RoutedLayer):
    """The input embeddings of a model that generates, and P = `AdapterConfig.virtual_tokens` virtual tokens beside them.

    bank_tokens [H, S, P, W/H]; those of a task are `concat_h sum_s w[t,h,s] bank_tokens[h,s]` [P, W]. The embeddings of real tokens are
    as they were: virtual tokens come in where the model is called (`mhr.layers.virtual`).
    """

    bank_names = ("bank_tokens",)
    head_dims = (2,)
    bank_tokens: nn.Parameter
    width = 0
    """W, numbers of a virtual token."""

    def fit(self, model: nn.Module) -> None:
        if not getattr(model, "can_generate", lambda: False)():
            raise TargetError(
                f"adapter is {self.config.adapter!r}, whose virtual tokens are for models that generate text, but the model is a "
                f"{type(model).__name__}: choose another kind of adapter"
            )
        self.width = self.width_of(model)
        self.check_heads(output=self.width)
        self.reset()

    @abstractmethod
    def width_of(self, model: nn.Module) -> int:
        """W. Raises TargetError for a model that virtual tokens cannot be put in front of."""

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """The embeddings of real tokens."""
        found: Tensor = self.base(x, *more)
        return found

    def adapted(self, x: Tensor, segments: Segments) -> Tensor:
        return self.forward(x)

    def tokens(self, batch: RoutingBatch) -> Tensor:
        """The virtual tokens [U, P, W] of the batch's distinct tasks."""
        weights = self.state.weights
        chosen = batch.blend(self.router(batch), self.router.even) if weights is None else weights[self.router.index]
        return self.mixed(chosen)[0]


class RoutedPrompt(RoutedVirtual):
    """Embeddings of P virtual tokens, W of them as of any token; at first those of tokens drawn from the vocabulary."""

    def width_of(self, model: nn.Module) -> int:
        if not model.config.is_encoder_decoder:  # type: ignore[union-attr]
            read_keys_and_values(model)
        return self.out_features

    def fresh(self, name: str, n_skills: int) -> Tensor:
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        count = self.config.virtual_tokens
        drawn = torch.randint(weight.shape[0], (n_skills, count), device=weight.device)
        heads = self.router.n_heads
        chosen = weight.detach()[drawn].to(**self.place()) * self.skill_size
        return chosen.view(n_skills, count, heads, -1).permute(2, 0, 1, 3).contiguous()


class RoutedPrefix(RoutedVirtual):
    """Keys and values of P virtual tokens in each self-attention of a decoder, W = 2 * layers * heads * size, in PEFT's order: of each
    layer the keys, then the values, head by head. ~ N(0, 0.02), without a network that they would be computed by."""

    def __init__(self, name: str, base: nn.Module, config: AdapterConfig, router: Router, state: RoutingState):
        super().__init__(name, base, config, router, state)
        self.layers, self.heads, self.size = 0, 0, 0

    def width_of(self, model: nn.Module) -> int:
        found = read_keys_and_values(model)
        shapes = {tuple(t.shape) for layer in found for t in layer}
        if len(shapes) > 1:
            raise TargetError(
                f"the layers of {model.config.model_type!r} keep keys and values of several shapes, {sorted(shapes)}, "  # type: ignore[union-attr]
                "which no prefix has: choose another kind of adapter"
            )
        self.layers = len(found)
        _, self.heads, _, self.size = shapes.pop()
        config: Any = model.config
        if (self.layers, self.heads) != layers_and_heads(config):
            raise TargetError(
                f"the configuration of {config.model_type!r} does not say that {self.layers} layers keep keys and values of {self.heads} "
                "heads, which a prefix is stored by: choose another kind of adapter"
            )
        return 2 * self.layers * self.heads * self.size

    def fresh(self, name: str, n_skills: int) -> Tensor:
        heads = self.router.n_heads
        values = torch.empty(heads, n_skills, self.config.virtual_tokens, self.width // heads, **self.place())
        return values.normal_(0.0, PREFIX_STD * self.skill_size)

    def keys_and_values(self, tokens: Tensor) -> KeysAndValues:
        """Tokens [U, P, W] as keys and values [U, heads, P, size] of each layer."""
        split = tokens.view(*tokens.shape[:2], 2 * self.layers, self.heads, self.size).permute(2, 0, 3, 1, 4)
        return [(split[2 * i], split[2 * i + 1]) for i in range(self.layers)]


def layers_and_heads(config: Any) -> tuple[int, int]:
    """How many layers of a decoder keep keys and values, and of how many heads, as a model's configuration says."""
    config = config if config.is_encoder_decoder else config.get_text_config(decoder=True)

    def said(*names: str) -> int:
        return next((n for n in (getattr(config, name, None) for name in names) if isinstance(n, int)), 0)

    layers = ("num_decoder_layers", "decoder_layers", "num_hidden_layers")
    return said(*layers), said("num_key_value_heads", "decoder_attention_heads", "num_attention_heads")


@torch.no_grad()
def read_keys_and_values(model: nn.Module) -> KeysAndValues:
    """What the decoder of a model keeps of one token. Raises TargetError where it is more than keys and values, or none."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}  # type: ignore[union-attr]
    with torch.random.fork_rng(devices=[]):
        kept = getattr(model(input_ids=ids, use_cache=True, **more), "past_key_values", None)
    return layers_of(kept, model)


def layers_of(cache: Any, model: nn.Module) -> KeysAndValues:
    """The keys and values that a model has returned, those of its self-attention. Raises TargetError for any other cache."""
    cache = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        config: Any = model.config
        raise TargetError(
            f"{config.model_type!r} keeps more, or less, of what it has read than all keys and values, so that virtual tokens have no place in "
            "front of it: choose another kind of adapter"
        )
    return [(layer.keys, layer.values) for layer in cache.layers]
