"""Where generation begins and ends: at the tokens that answers are trained to begin and end with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mhr.data.example import Example
from mhr.data.special_tokens import answer_end, target_language
from mhr.evaluation.loaded import LoadedModel
from mhr.objectives.shifting import first_read


def special_tokens(loaded: LoadedModel, examples: Sequence[Example] = ()) -> dict[str, Any]:
    """Settings of a GenerationConfig that go before the model's own, which may name others than its tokenizer.

    eos_token_id            what answers to these examples are trained to end in, and the ends that the model's own configuration knows
    decoder_start_token_id  of an encoder-decoder, what it reads first in training
    forced_bos_token_id     the code of the target language, where targets begin with one
    """
    if loaded.objective.shares_row:
        ends = loaded.collator(*loaded.lengths()).answer_ends(examples)
    else:
        ends = [answer_end(loaded.tokenizer, decoder=False)]
    configured = loaded.model.generation_config.eos_token_id
    found: dict[str, Any] = {
        "eos_token_id": list(
            dict.fromkeys([*ends, *([configured] if isinstance(configured, int) else configured or [])])
        )
    }
    if not loaded.objective.shares_row:
        target = loaded.tokenizer(text_target="a")["input_ids"]
        found["decoder_start_token_id"] = first_read(loaded.model, target)
        language = target_language(loaded.tokenizer)
        if language is not None:
            found["forced_bos_token_id"] = language
    return found


def until_end(row: list[int], ends: list[int]) -> list[int]:
    """A generated row before the first token that ends an answer, which need not be a special one of the tokenizer."""
    return row[: next((i for i, token in enumerate(row) if token in ends), len(row))]
