"""Truncation of prompts from the middle: what a prompt begins with and what it ends with stay.

    BOS | beginning of the text ... | ... end of the text                                  plain text
    BOS, system turn | earlier turns | beginning of the question ... | ... end of the prompt    a conversation

Of a conversation whole earlier turns go first, the oldest before the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parts:
    """Where a prompt may be truncated, in tokens.

    head   tokens at its beginning that stay
    turns  where user turns begin, ascending, the first at `head`: tokens from there to a later one may go as a whole
    tail   tokens at its end that stay
    """

    head: int
    turns: tuple[int, ...]
    tail: int = 0


def spans_within(length: int, parts: Parts, limit: int) -> list[slice] | None:
    """The spans of a prompt of `length` tokens that are kept, at most `limit` tokens together; None where its head and tail leave
    no room for anything between them."""
    if length <= limit:
        return [slice(0, length)]
    head = slice(0, parts.head)
    for begin in parts.turns[1:]:
        if parts.head + length - begin <= limit:
            return [head, slice(begin, length)]
    room = limit - parts.head - parts.tail
    if room < 1:
        return None
    begin = parts.turns[-1]
    return [head, slice(begin, begin + room - room // 2), slice(length - parts.tail - room // 2, length)]


def pick(row: Sequence[int], spans: Sequence[slice]) -> list[int]:
    """The tokens of some spans."""
    return [token for span in spans for token in row[span]]
