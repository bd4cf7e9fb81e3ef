"""Whether what a model keeps of an input is keys and values, which several answers can share and padding leaves alone."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# What models raise that are asked for a cache they do not have, or to decode several tokens on the one they have, which may
# end in shapes that do not fit.
NO_CACHE = (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)

KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer)


def keeps_keys_and_values(cache: Any) -> bool:
    """Whether a cache that a model returned holds keys and values in all its layers, and nothing else."""
    if isinstance(cache, EncoderDecoderCache):
        return keeps_keys_and_values(cache.self_attention_cache) and keeps_keys_and_values(cache.cross_attention_cache)
    # Exact types: an architecture's own cache or layer holds more than these do.
    return type(cache) is DynamicCache and all(type(layer) in KEYS_AND_VALUES for layer in cache.layers)
