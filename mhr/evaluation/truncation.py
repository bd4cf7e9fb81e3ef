"""How many examples an evaluation truncated, task by task."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from mhr.data.example import Example
from mhr.evaluation.generation import Generated
from mhr.evaluation.loaded import LoadedModel
from mhr.evaluation.ranked import Ranked


def count_truncated(
    loaded: LoadedModel,
    to_rank: Sequence[Example],
    ranked: Sequence[Ranked],
    to_generate: Sequence[Example],
    generated: Sequence[Generated],
    max_target_length: int,
) -> dict[str, Any]:
    """Numbers of examples.

    examples  all of them
    inputs    those whose input was truncated
    choices   those with a choice that was truncated
    targets   those asked for an answer in words whose targets all have more than `max_target_length` tokens, end token included, so
              that no answer can equal one
    tasks     task -> its own such counts, where there are any
    """
    # An example may be both ranked and answered in words, and is counted once.
    cut: dict[str, dict[int, str]] = {"inputs": {}, "choices": {}, "targets": {}}
    for example, answer in zip(to_rank, ranked, strict=True):
        if answer.cut_input:
            cut["inputs"][id(example)] = example.task
        if answer.cut_choices:
            cut["choices"][id(example)] = example.task
    for example, generation in zip(to_generate, generated, strict=True):
        if generation.cut_input:
            cut["inputs"][id(example)] = example.task
    for example in _unreachable(loaded, to_generate, max_target_length):
        cut["targets"][id(example)] = example.task
    tasks: dict[str, dict[str, int]] = {}
    for what, found in cut.items():
        for task in found.values():
            counts = tasks.setdefault(task, dict.fromkeys(cut, 0))
            counts[what] += 1
    total = {what: len(found) for what, found in cut.items()}
    return {"examples": len({id(e) for e in [*to_rank, *to_generate]}), **total, "tasks": tasks}


def _unreachable(loaded: LoadedModel, examples: Sequence[Example], max_target_length: int) -> Iterator[Example]:
    """The examples all of whose targets are longer than an answer may be, in the tokens that they are trained with."""
    if not examples:
        return
    # The answer's tokens depend on the end of the prompt alone, however much of it is kept.
    _, targets = loaded.collator(sys.maxsize, max(max_target_length, 2)).encode_answers(
        examples, [e.targets for e in examples]
    )
    cut = iter(targets.cut)
    for example in examples:
        own = [next(cut) for _ in example.targets]
        if all(own):
            yield example
