"""How many examples an evaluation truncated, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mhr.data.example import Example
from mhr.evaluation.generation import Generated
from mhr.evaluation.ranking import Ranked


def count_truncated(
    tokenizer: PreTrainedTokenizerBase,
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
        if _shortest(tokenizer, example) >= max_target_length:
            cut["targets"][id(example)] = example.task
    tasks: dict[str, dict[str, int]] = {}
    for what, found in cut.items():
        for task in found.values():
            counts = tasks.setdefault(task, dict.fromkeys(cut, 0))
            counts[what] += 1
    total = {what: len(found) for what, found in cut.items()}
    return {"examples": len({id(e) for e in [*to_rank, *to_generate]}), **total, "tasks": tasks}


def _shortest(tokenizer: PreTrainedTokenizerBase, example: Example) -> int:
    """Tokens of the shortest target, without special ones."""
    rows = tokenizer(text_target=list(example.targets), add_special_tokens=False, verbose=False)["input_ids"]
    return min(map(len, rows))
