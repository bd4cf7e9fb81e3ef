"""Texts -> token rows, one way for training and for evaluation, with a note of which were too long.

encode          what an encoder-decoder reads and says          loses its end
encode_prompts  what a decoder reads                            is left open, loses its beginning
encode_answers  what a decoder says after a prompt              loses its end, keeps the end token
encode_pairs    what an encoder scores: (input, choice)         loses the end of the input, never of the choice
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mhr.data.example import Example
from mhr.errors import DataError


@dataclass(frozen=True, slots=True)
class TokenRows:
    """ids: the tokens of each text; cut: whether some were cut off; types: segment of each token, where the model asks."""

    ids: list[list[int]]
    cut: list[bool]
    types: list[list[int]] | None = None


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> TokenRows:
    """Texts with the tokenizer's special tokens, at most `max_length` tokens each."""
    rows = _whole(tokenizer, max_length, list(texts))
    return _shorten(rows, tokenizer, max_length, True, list(texts))


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> TokenRows:
    """Texts to go on from: without an end token, which some tokenizers add, and at most their last `max_length` tokens,
    since what is asked stands at the end."""
    rows = tokenizer(list(texts), verbose=False)["input_ids"]
    opened = [row[:-1] if row and row[-1] == tokenizer.eos_token_id else row for row in rows]
    return TokenRows([row[-max_length:] for row in opened], [len(row) > max_length for row in opened])


def encode_answers(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> TokenRows:
    """Answers to a prompt, parted from it by a space as in running text, and the end token."""
    spaced = [" " + text for text in texts]
    rows = tokenizer(spaced, add_special_tokens=False, verbose=False)["input_ids"]
    ended = [[*row[: max_length - 1], tokenizer.eos_token_id] for row in rows]
    return TokenRows(ended, [len(row) + 1 > max_length for row in rows])


def encode_pairs(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int) -> TokenRows:
    """Each example's input with each of its choices, one row a pair, example after example.

    Raises DataError for an example without choices, with an empty one, or with one that leaves no room for an input.
    """
    for example in examples:
        check_choices(example)
    inputs = [e.input for e in examples for _ in e.choices]
    choices = [c for e in examples for c in e.choices]
    rows = _whole(tokenizer, max_length, inputs, choices)
    if any(rows.cut):
        owners = [e for e in examples for _ in e.choices]
        _check_room(tokenizer, [e for e, cut in zip(owners, rows.cut, strict=True) if cut], max_length)
    return _shorten(rows, tokenizer, max_length, "only_first", inputs, choices)


def check_choices(example: Example) -> None:
    """Raise DataError where an example's choices cannot be ranked."""
    where = f"example {example.id!r} of task {example.task!r}"
    if not example.choices:
        raise DataError(f"{where} has no choices to rank: give it some, or use a model that generates")
    if not all(choice.strip() for choice in example.choices):
        raise DataError(f"{where} has an empty choice among {list(example.choices)}: expected some text in each")


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ragged token rows as int64 [B, L] filled up with `value`, and their mask [B, L], 1 at tokens."""
    longest = max(map(len, rows), default=0)
    ids = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        span = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, span] = torch.tensor(row, dtype=torch.long)
        mask[i, span] = 1
    return ids, mask


def _whole(tokenizer: PreTrainedTokenizerBase, max_length: int, *texts: list[str]) -> TokenRows:
    """Texts, or pairs of texts, as they are, and which of them are too long."""
    rows = tokenizer(*texts, verbose=False)
    return TokenRows(
        rows["input_ids"], [len(row) > max_length for row in rows["input_ids"]], rows.get("token_type_ids")
    )


def _shorten(
    rows: TokenRows, tokenizer: PreTrainedTokenizerBase, max_length: int, how: bool | str, *texts: list[str]
) -> TokenRows:
    """Rows that are too long, and only those, are made anew by the tokenizer, whose special tokens stay where they belong."""
    long = [i for i, cut in enumerate(rows.cut) if cut]
    if long:
        short = tokenizer(*([part[i] for i in long] for part in texts), truncation=how, max_length=max_length)
        for position, i in enumerate(long):
            rows.ids[i] = short["input_ids"][position]
            if rows.types is not None:
                rows.types[i] = short["token_type_ids"][position]
    return rows


def _check_room(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int) -> None:
    for example in dict.fromkeys(examples):
        alone = tokenizer([""] * len(example.choices), list(example.choices), verbose=False)["input_ids"]
        for choice, ids in zip(example.choices, alone, strict=True):
            if len(ids) >= max_length:
                raise DataError(
                    f"example {example.id!r} of task {example.task!r}: choice {choice!r:.40} alone takes {len(ids)} tokens, "
                    f"which leaves no room for the input in {max_length}: raise max_input_length"
                )
