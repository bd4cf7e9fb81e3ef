"""The shots of a task: how many, and which ones a seed picks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fnmatch import fnmatchcase

from mhr.data import Example, Task, TaskCollection
from mhr.data.drawing import shot_order
from mhr.errors import DataError
from mhr.runs.adapt_settings import AdaptConfig


def shots_of(few: AdaptConfig, task: str) -> int:
    """The number of shots for a task: by its own name in `shots_for`, by the first pattern there that fits it, or `shots`."""
    patterns = (n for pattern, n in few.shots_for.items() if fnmatchcase(task, pattern))
    return few.shots_for.get(task) or next(patterns, few.shots)


def draw_shots(task: Task, shots: int, seed: int, more: int = 0, called: str = "shots") -> list[Example]:
    """The `shots` training examples of a task that a seed picks, the same for every mode and method; `more` after them.

    Rule: training examples in their `shot_order`, the first `shots` + `more` of them. Raises DataError for a task that has
    fewer, naming the option `called` that asks for them.
    """
    if len(task.train) < shots + more:
        asked = f"the {shots} {called} and {more} dev shots" if more else f"the {shots} {called}"
        raise DataError(
            f"task {task.name!r} has {len(task.train)} training examples, fewer than {asked} asked for: "
            f"use --{called} {max(len(task.train) - more, 1)} or fewer"
        )
    return shot_order(task.train, task.name, seed)[: shots + more]


def with_shots(task: Task, shots: Iterable[Example]) -> TaskCollection:
    """A collection of this one task, with only these training examples."""
    return TaskCollection([dataclasses.replace(task, train=list(shots))])
