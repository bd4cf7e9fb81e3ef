"""What head a task asks for, by its data: classes, numbers, or choices to rank.

    setting    a task gets
    classify   a class for each of its choices, which all its examples have to share; without choices for each training target
    regress    one number, which every target has to be
    rank       one score of each (input, choice) pair
    auto       classify where all examples have the same choices, unless these are a scale; regress for a scale, and for targets
               that are all numbers without choices; rank where choices vary by example

A scale is a label set of numbers that are more than MOST_NUMBERS, or not all integers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from mhr.data.example import Example, Task
from mhr.errors import DataError
from mhr.task_heads import CLASSIFY, RANK, REGRESS, TaskHead

MOST_NUMBERS = 10
"""Numbers in a label set that `auto` takes for classes; more of them are a scale."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def number_of(text: str) -> float | None:
    """The number that a text says, as in 3, -0.5, 1e-3; None for any other text."""
    said = text.strip()
    value = float(said) if _NUMBER.fullmatch(said) else math.nan
    return value if math.isfinite(value) else None


def task_head(task: Task, wanted: str = "auto") -> TaskHead:
    """The head that a task asks for, by its training examples, where the setting `head` is `wanted`.

    Raises DataError, whose text says what the task has ("it has ..."), where that does not go with the setting.
    """
    if wanted == RANK:
        _check_ranked(task)
        return TaskHead(RANK)
    if wanted == REGRESS:
        return _regress(task)
    sets = list(dict.fromkeys(frozenset(e.choices) for e in task.train))
    varying = len(sets) > 1
    if wanted == CLASSIFY:
        if varying:
            raise DataError(
                "it has choices that vary by example, expected the same ones in all of them for head 'classify': use --head rank"
            )
        return _classify(task)
    if varying:
        _check_ranked(task)
        return TaskHead(RANK)
    if task.train[0].choices:
        return _regress(task) if _is_scale(sets[0]) else _classify(task)
    targets = [example.targets[0] for example in task.train]
    numbers = [text for text in targets if number_of(text) is not None]
    if len(numbers) == len(targets):
        return _regress(task)
    if len(set(targets)) == 1:
        raise _one_class(targets[0])
    text = next(text for text in targets if number_of(text) is None)
    if numbers:
        raise DataError(
            f"it has targets that are numbers ({numbers[0]!r}) and others that are not ({text!r:.40}): expected all numbers, to "
            "regress, or all texts, to classify (a run of --head classify takes every distinct target for a class)"
        )
    raise DataError(
        "it has no choices to rank, which an encoder needs, and targets in words: give its rows choices, or pretrain with --head "
        f"classify, which takes its {len(set(targets))} distinct targets for classes"
    )


def check_answers(task: Task, head: TaskHead, examples: Iterable[Example], split: str) -> None:
    """Raise DataError where targets of `examples`, which are of a split of the task, are no answers that the head can give."""
    answers = [(e, target) for e in examples for target in e.targets[:1]]
    if head.kind == REGRESS:
        for example, target in answers:
            if number_of(target) is None:
                raise DataError(
                    f"{split} example {example.id!r} of task {task.name!r} has target {target!r:.40}, expected a number, as its "
                    "training targets are"
                )
    if head.kind == CLASSIFY:
        _refuse_classes(task, dict.fromkeys(target for _, target in answers if target not in head.labels), head, split)


def check_classes(task: Task, head: TaskHead) -> None:
    """Raise DataError where no training example has a class of the head that nothing but targets of other splits speaks of."""
    if head.kind == CLASSIFY:
        for split, labels in task.untaught.items():
            taught = [label for label in head.labels if label not in labels]
            _refuse_classes(task, labels, TaskHead(CLASSIFY, tuple(taught)), split)


def _refuse_classes(task: Task, unknown: Iterable[str], head: TaskHead, split: str) -> None:
    unknown = list(unknown)
    if unknown:
        named = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise DataError(
            f"task {task.name!r} has classes in its {split} examples that training lacks: {named}; it was trained on "
            f"{', '.join(map(repr, head.labels[:10]))}: add training examples or choices of them, or leave them out"
        )


def _is_scale(labels: frozenset[str]) -> bool:
    numbers = [number_of(label) for label in labels]
    if any(number is None for number in numbers):
        return False
    return len(labels) > MOST_NUMBERS or any(number != int(number) for number in numbers if number is not None)


def _classify(task: Task) -> TaskHead:
    targets = [example.targets[0] for example in task.train]
    offered = task.train[0].choices
    if offered and set(task.choices) == set(offered):
        offered = task.choices  # as the collection lists them, whatever order an example has
    labels = tuple(dict.fromkeys(offered)) or tuple(sorted(set(targets)))
    if len(labels) < 2:
        raise _one_class(labels[0])
    return TaskHead(CLASSIFY, labels)


def _one_class(label: str) -> DataError:
    return DataError(f"it has one class only, {label!r:.40}: expected at least 2 to classify")


def _regress(task: Task) -> TaskHead:
    for example in task.train:
        if number_of(example.targets[0]) is None:
            raise DataError(
                f"it has target {example.targets[0]!r:.40} in example {example.id!r}, expected a number for head 'regress': use "
                "--head classify for labels in words"
            )
    return TaskHead(REGRESS)


def _check_ranked(task: Task) -> None:
    if not all(example.choices for example in task.train):
        raise DataError("it has no choices to rank, which an encoder needs")
