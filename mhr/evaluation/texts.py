"""Texts as token rows, exactly as the collators of training make them, with a note of which were too long.

Rows rather than batches: each text is tokenised once, and batches are made of rows of like length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mhr.evaluation.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class TokenRows:
    """ids: the tokens of each text; cut: whether some were cut off; types: segment of each token, where the model asks."""

    ids: list[list[int]]
    cut: list[bool]
    types: list[list[int]] | None = None


def encode_inputs(loaded: LoadedModel, texts: Sequence[str], max_length: int) -> TokenRows:
    """What a generator reads. A decoder's prompt is left open and loses its beginning, an encoder's input its end."""
    if loaded.kind == "seq2seq":
        return _tokenize(loaded, max_length, text=list(texts))
    rows = loaded.tokenizer(list(texts), verbose=False)["input_ids"]
    end = loaded.tokenizer.eos_token_id
    opened = [row[:-1] if row and row[-1] == end else row for row in rows]
    return TokenRows([row[-max_length:] for row in opened], [len(row) > max_length for row in opened])


def encode_answers(loaded: LoadedModel, texts: Sequence[str], max_length: int) -> TokenRows:
    """What a generator is to say, with the end token; a decoder's answer is parted from the prompt by a space."""
    if loaded.kind == "seq2seq":
        return _tokenize(loaded, max_length, text=list(texts))
    spaced = [" " + text for text in texts]
    rows = loaded.tokenizer(spaced, add_special_tokens=False, verbose=False)["input_ids"]
    ended = [[*row[: max_length - 1], loaded.tokenizer.eos_token_id] for row in rows]
    return TokenRows(ended, [len(row) + 1 > max_length for row in rows])


def encode_pairs(loaded: LoadedModel, inputs: Sequence[str], choices: Sequence[str], max_length: int) -> TokenRows:
    """What an encoder scores: input and choice in one row; where it is too long, the input is cut."""
    return _tokenize(loaded, max_length, text=list(inputs), text_pair=list(choices), truncation="only_first")


def _tokenize(loaded: LoadedModel, max_length: int, truncation: str | bool = True, **texts: Any) -> TokenRows:
    whole = loaded.tokenizer(**texts, verbose=False)
    cut = [len(row) > max_length for row in whole["input_ids"]]
    kept = loaded.tokenizer(**texts, truncation=truncation, max_length=max_length) if any(cut) else whole
    return TokenRows(kept["input_ids"], cut, kept.get("token_type_ids"))
