"""Texts -> token rows, one way for training and for evaluation, with a note of which were too long.

encode            what an encoder-decoder reads                   truncated at its end
encode_targets    what an encoder-decoder says                    truncated at its end, keeps the end token
encode_prompts    what a decoder reads                            is left open, truncated in its middle, behind the BOS
encode_answers    prompts, and what a decoder says after them     truncated at their end, keep the end token
encode_pairs      what an encoder scores: (input, choice)         truncated at the end of the input, never of the choice

A decoder reads running text: prompt, space, answer. The tokens of the two are those of the whole, for a tokenizer may put a
space before every text by itself (SentencePiece), or take the last space of a prompt into the next word. So a prompt is
encoded with something behind it, and a token that spans the border belongs to the answer:

    "is it so? yes"   <s> _is _it _so ? | _yes </s>         (not  | _ _yes </s>)
    "Answer: " yes    <s> _Answer : | _yes </s>             (not  _Answer : _ | yes </s>)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mhr.data.example import Example
from mhr.data.middle import Parts, pick, spans_within
from mhr.data.special_tokens import PROBE, end_token, frame_of, start_token
from mhr.errors import DataError

IGNORED = -100
"""The label of positions that carry no loss."""


@dataclass(frozen=True, slots=True)
class TokenRows:
    """ids: the tokens of each text; cut: whether it was truncated; types: segment of each token, where the model asks."""

    ids: list[list[int]]
    cut: list[bool]
    types: list[list[int]] | None = None


@dataclass(frozen=True, slots=True)
class TokenRow:
    """What a decoder is trained on for one example: prompt and answers as one row.

    ids         the tokens
    labels      of the same positions: the token where it is trained on, IGNORED elsewhere; not shifted
    cut         whether the prompt was truncated
    cut_target  whether an answer was
    last_only   whether the last turn alone is trained on though all were asked for, since the template rewrites earlier ones
    """

    ids: list[int]
    labels: list[int]
    cut: bool = False
    cut_target: bool = False
    last_only: bool = False


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> TokenRows:
    """Texts with the tokenizer's special tokens, at most `max_length` tokens each."""
    rows = _whole(tokenizer, max_length, text=list(texts))
    return _shorten(rows, tokenizer, max_length, True, text=list(texts))


def encode_targets(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> TokenRows:
    """Targets as the tokenizer encodes targets, in their own language or vocabulary where it knows of that, and with the end
    token that it gives them."""
    rows = _whole(tokenizer, max_length, text_target=list(texts))
    return _shorten(rows, tokenizer, max_length, True, text_target=list(texts))


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> TokenRows:
    """Texts to go on from: their tokens that stay the same when an answer follows, without an end token, behind the special
    tokens that the tokenizer begins with; of too long a text its beginning and its end."""
    return _after_start(tokenizer, _open(tokenizer, texts), max_length)


def encode_answers(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[Sequence[str]],
    max_prompt_length: int,
    max_answer_length: int,
) -> tuple[TokenRows, TokenRows]:
    """B prompts as `encode_prompts` does, and the answers to each, one prompt's after the other's: the tokens that follow it
    in running text, and the end token.

    All answers to a prompt follow the same tokens. Where one of them changes tokens inside the prompt, which takes a
    tokenizer that does not part words at spaces, the prompt ends before these, and they count as the answers'.
    """
    owners = [i for i, own in enumerate(answers) for _ in own]
    texts = [
        running_text(prompts[i], answer) for i, answer in zip(owners, (a for own in answers for a in own), strict=True)
    ]
    opened = _open(tokenizer, prompts)
    whole = tokenise(tokenizer, text=texts, add_special_tokens=False)["input_ids"]
    for i, row in zip(owners, whole, strict=True):
        opened[i] = opened[i][: shared(opened[i], row)]
    answered = [row[len(opened[i]) :] for i, row in zip(owners, whole, strict=True)]
    end, room = end_token(tokenizer), max_answer_length - 1
    ended = TokenRows([[*row[:room], end] for row in answered], [len(row) > room for row in answered])
    return _after_start(tokenizer, opened, max_prompt_length), ended


def encode_pairs(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int) -> TokenRows:
    """Each example's input with each of its choices, one row a pair, example after example.

    Raises DataError for an example without choices, with an empty one, or with one that leaves no room for an input.
    """
    for example in examples:
        check_choices(example)
    pairs = {
        "text": [e.input for e in examples for _ in e.choices],
        "text_pair": [c for e in examples for c in e.choices],
    }
    rows = _whole(tokenizer, max_length, **pairs)
    if any(rows.cut):
        owners = [e for e in examples for _ in e.choices]
        _check_room(tokenizer, [e for e, cut in zip(owners, rows.cut, strict=True) if cut], max_length)
    return _shorten(rows, tokenizer, max_length, "only_first", **pairs)


def token_counts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> list[int]:
    """Tokens of each text, or of each text and its pair, with special tokens."""
    if not texts:  # which tokenizers refuse
        return []
    rows = tokenise(tokenizer, text=list(texts), text_pair=None if pairs is None else list(pairs))
    return [len(row) for row in rows["input_ids"]]


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


def tokenise(tokenizer: PreTrainedTokenizerBase, **texts: Any) -> Any:
    """The tokenizer's answer. Raises DataError, naming the text, for a lone surrogate, which no tokenizer can encode."""
    try:
        return tokenizer(**texts, verbose=False)
    except (UnicodeEncodeError, TypeError) as error:
        for text in (t for part in texts.values() if isinstance(part, list) for t in part):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise DataError(
                    f"text {text!r:.60} holds half of a surrogate pair, expected characters that Unicode can encode: it was "
                    "truncated within an emoji or the like; repair it or leave it out"
                ) from error
        raise


def running_text(prompt: str, answer: str) -> str:
    """Prompt and answer as running text: a space between them unless there is white space already."""
    parted = not prompt or not answer or prompt[-1].isspace() or answer[0].isspace()
    return prompt + ("" if parted else " ") + answer


def _open(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of each prompt, without special ones, that end inside it when a word follows. A last space is the next
    word's, as the one that `running_text` puts there."""
    followed = [running_text(prompt, PROBE) for prompt in prompts]
    whole = [prompt.removesuffix(" ") for prompt in prompts]
    return _within(tokenizer, whole, followed)


def tokens_within(tokenizer: PreTrainedTokenizerBase, text: str, followed: str) -> list[int]:
    """The tokens of `followed`, without special ones that the tokenizer adds, that end inside `text`, with which it begins."""
    return _within(tokenizer, [text], [followed])[0]


def _within(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], followed: Sequence[str]) -> list[list[int]]:
    if tokenizer.is_fast:
        found = tokenise(tokenizer, text=list(followed), add_special_tokens=False, return_offsets_mapping=True)
        return [
            row[: sum(1 for _ in takewhile(lambda span: span[1] <= end, spans))]  # noqa: B023
            for row, spans, end in zip(found["input_ids"], found["offset_mapping"], map(len, texts), strict=True)
        ]
    rows = tokenise(tokenizer, text=list(followed), add_special_tokens=False)["input_ids"]
    alone = tokenise(tokenizer, text=list(texts), add_special_tokens=False)["input_ids"]
    return [row[: shared(row, own)] for row, own in zip(rows, alone, strict=True)]


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _after_start(tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]], max_length: int) -> TokenRows:
    """Open rows behind what the tokenizer begins with, cut from their middle where they are too long; a row without any token gets
    the start token, to predict from."""
    before = frame_of(tokenizer).before
    room = max(max_length - len(before), 0)
    ids = [
        [*before, *pick(row, spans_within(len(row), Parts(0, (0,)), room) or ())] or [start_token(tokenizer)]
        for row in rows
    ]
    return TokenRows(ids, [len(row) > room for row in rows])


def _whole(tokenizer: PreTrainedTokenizerBase, max_length: int, **texts: list[str]) -> TokenRows:
    """Texts, or pairs of texts, as they are, and which of them are too long."""
    rows = tokenise(tokenizer, **texts)
    return TokenRows(
        rows["input_ids"], [len(row) > max_length for row in rows["input_ids"]], rows.get("token_type_ids")
    )


def _shorten(
    rows: TokenRows, tokenizer: PreTrainedTokenizerBase, max_length: int, how: bool | str, **texts: list[str]
) -> TokenRows:
    """Rows that are too long, and only those, are tokenised again, so that special tokens stay where they belong."""
    long = [i for i, cut in enumerate(rows.cut) if cut]
    if long:
        parts = {name: [part[i] for i in long] for name, part in texts.items()}
        short = tokenizer(**parts, truncation=how, max_length=max_length)
        for position, i in enumerate(long):
            rows.ids[i] = short["input_ids"][position]
            if rows.types is not None:
                rows.types[i] = short["token_type_ids"][position]
    return rows


def _check_room(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int) -> None:
    for example in dict.fromkeys(examples):
        alone = token_counts(tokenizer, [""] * len(example.choices), example.choices)
        for choice, count in zip(example.choices, alone, strict=True):
            if count >= max_length:
                raise DataError(
                    f"example {example.id!r} of task {example.task!r}: choice {choice!r:.40} alone takes {count} tokens, "
                    f"which leaves no room for the input in {max_length}: raise max_input_length"
                )
