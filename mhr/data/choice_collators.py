"""Examples -> batches in which every choice of an example is scored, for generators that train on ranking losses.

Both batches hold `labels` [P, T], the P answers that are scored, example after example, IGNORED where there is no answer;
`owners` int64 [P], the example of each; `right` int64 [B], which of an example's answers is the right one, and `gold` int64
[B], its row; `choice_counts`, a list of B integers; and `task_ids`, B names. An example without choices has one answer, its target.
Of several accepted targets only the first is scored: the others are no wrong answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from mhr.data.collators import IGNORED, Batch, CausalCollator, Seq2SeqCollator
from mhr.data.example import Example
from mhr.data.tokens import check_choices, pad
from mhr.errors import DataError


class Seq2SeqChoicesCollator(Seq2SeqCollator):
    """Encoder-decoders: input_ids, attention_mask [B, L], one row an example, however many answers it has."""

    by_rows = False

    def __call__(self, examples: Sequence[Example]) -> Batch:
        offered = [scored_answers(e) for e in examples]
        inputs, answers = self._counted(examples, offered)
        _check_distinct(examples, offered, answers, self.max_target_length)
        return {**self._padded(inputs), **_shared(examples, offered), "labels": pad(answers, IGNORED)[0]}


class CausalChoicesCollator(CausalCollator):
    """Decoders: input_ids, attention_mask [P, L], the prompt and one answer in each row."""

    by_rows = False

    def __call__(self, examples: Sequence[Example]) -> Batch:
        offered = [scored_answers(e) for e in examples]
        inputs, answers = self._counted(examples, offered)
        _check_distinct(examples, offered, answers, self.max_target_length)
        prompts = [prompt for prompt, own in zip(inputs, offered, strict=True) for _ in own]
        labels = [[IGNORED] * len(prompt) + row for prompt, row in zip(prompts, answers, strict=True)]
        whole = [prompt + row for prompt, row in zip(prompts, answers, strict=True)]
        return {**self._padded(whole), **_shared(examples, offered), "labels": pad(labels, IGNORED)[0]}


def scored_answers(example: Example) -> list[str]:
    """The right answer and the wrong ones, in the order of the choices; the target alone where there are none.

    Raises DataError for an empty choice.
    """
    if not example.choices:
        return [example.targets[0]]
    check_choices(example)
    return list(example.compared)


def beginnings(example: Example) -> tuple[str, str] | None:
    """Two choices of which the first is the beginning of the second, or None. Only the end token distinguishes them."""
    ordered = sorted(set(example.choices))
    # Sorted, a text that begins another stands right before one that it begins.
    return next(((short, long) for short, long in pairwise(ordered) if long.startswith(short)), None)


def _shared(examples: Sequence[Example], offered: Sequence[list[str]]) -> Batch:
    counts = [len(own) for own in offered]
    right = torch.tensor([own.index(e.targets[0]) for e, own in zip(examples, offered, strict=True)])
    return {
        "owners": torch.tensor([i for i, n in enumerate(counts) for _ in range(n)]),
        "right": right,
        "gold": right + torch.tensor([0, *accumulate(counts)][:-1]),
        "choice_counts": counts,
        "task_ids": [e.task for e in examples],
    }


def _check_distinct(
    examples: Sequence[Example], offered: Sequence[list[str]], rows: list[list[int]], limit: int
) -> None:
    """Raise DataError where two answers of an example became the same by truncation."""
    ends = accumulate((len(own) for own in offered), initial=0)
    for example, own, (first, last) in zip(examples, offered, pairwise(ends), strict=True):
        seen: dict[tuple[int, ...], str] = {}
        for answer, row in zip(own, rows[first:last], strict=True):
            other = seen.setdefault(tuple(row), answer)
            if other != answer:
                raise DataError(
                    f"example {example.id!r} of task {example.task!r}: choices {other!r:.60} and {answer!r:.60} are the same "
                    f"in their first {limit} tokens, so that none can be ranked above the other: raise max_target_length"
                )
