"""What a model's generation config decides of an answer: its special tokens, and nothing of how tokens are chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import GenerationConfig, PreTrainedModel

SPECIAL = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""Settings that say which tokens begin, end or never belong to an answer. All others (sampling, penalties, lengths, caches) are habits
of whoever published the model."""


@contextmanager
def without_habits(model: PreTrainedModel) -> Iterator[None]:
    """The model with a generation config of its SPECIAL settings alone inside the block: what `generate` is not told is the default of
    transformers, which is greedy."""
    before = model.generation_config
    kept = {name: getattr(before, name, None) for name in SPECIAL}
    model.generation_config = GenerationConfig(**{name: value for name, value in kept.items() if value is not None})
    try:
        yield
    finally:
        model.generation_config = before
