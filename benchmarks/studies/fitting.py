"""Which tasks suit a study by the length of their inputs."""

from __future__ import annotations

from typing import Any

from mhr.data import Task

SHARE = 0.9


def fits(task: Task, tokenizer: Any, length: int) -> bool:
    """Whether nine of ten inputs of a task have at most `length` tokens."""
    lengths = [len(row) for row in tokenizer([e.input for e in task.train + task.test])["input_ids"]]
    return sum(own <= length for own in lengths) >= SHARE * len(lengths)
