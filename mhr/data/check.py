"""Check a collection: what it holds, and every error in it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from mhr.data.example import Example, Task
from mhr.data.faults import Fault, Faults
from mhr.data.load import find_reader, load_tasks
from mhr.errors import DataError


@dataclass(slots=True)
class LengthSummary:
    """Median, 90th percentile and maximum length of some strings."""

    median: float
    p90: float
    max: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> LengthSummary:
        if not lengths:
            return cls(0, 0, 0)
        tenths = quantiles(lengths, n=10, method="inclusive") if len(lengths) > 1 else [lengths[0]] * 9
        return cls(tenths[4], tenths[8], max(lengths))


@dataclass(slots=True)
class TaskReport:
    """One task. Lengths are of inputs and first targets, in characters and, with a tokenizer, in tokens."""

    name: str
    held_out: bool
    category: str
    train: int
    test: int
    input_chars: LengthSummary
    target_chars: LengthSummary
    input_tokens: LengthSummary | None
    target_tokens: LengthSummary | None
    labels: dict[str, int]
    """Label -> how often it is the first target; empty for free generation."""
    choices: int
    """Labels one can choose from; 0 where they differ from example to example or there are none."""
    duplicates_train: int
    """Training examples whose input came before in the training split."""
    duplicates_test: int
    duplicates_between: int
    """Evaluation examples whose input is also in the training split."""


@dataclass(slots=True)
class CheckReport:
    """What `check_collection` found. `ok` is whether the collection can be used as it is."""

    path: str
    reader: str
    tasks: list[TaskReport] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    recognised: list[str] = field(default_factory=list)
    """What each file was taken for: format, columns, split and task."""

    @property
    def ok(self) -> bool:
        return not self.faults

    @property
    def totals(self) -> dict[str, int]:
        return {
            "tasks": len(self.tasks),
            "training_tasks": sum(not t.held_out for t in self.tasks),
            "held_out_tasks": sum(t.held_out for t in self.tasks),
            "train_examples": sum(t.train for t in self.tasks),
            "test_examples": sum(t.test for t in self.tasks),
            "duplicates": sum(t.duplicates_train + t.duplicates_test for t in self.tasks),
            "duplicates_between": sum(t.duplicates_between for t in self.tasks),
            "faults": len(self.faults),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the totals first."""
        return {"ok": self.ok, "totals": self.totals, **dataclasses.asdict(self)}


def check_collection(
    path: str | Path, *, count_tokens: Callable[[str], int] | None = None, on_bad_row: str = "error", **options: Any
) -> CheckReport:
    """Read everything at `path`, going on after each fault.

    count_tokens   text -> its number of tokens, for lengths in tokens
    on_bad_row     with "skip", faulty rows are counted in the notes and are no errors
    options        the others of `load_tasks`, but for `faults`

    Raises DataError where there is nothing to check (no such path, no known layout), ConfigError for wrong options.
    """
    faults = Faults(strict=False, on_bad_row=on_bad_row)
    reader = options.get("reader") or find_reader(str(path))
    report = CheckReport(str(path), reader, faults=faults.found)
    try:
        tasks = load_tasks(path, faults=faults, **options)
    except DataError as error:
        # Told by a step that cannot go on: a missing package, a repeated name.
        faults.found.append(Fault(str(path), 0, str(error).removeprefix(f"{path}: ")))
        return report
    report.notes, report.recognised = tasks.notes, tasks.recognised
    report.tasks = [_report(task, count_tokens) for task in tasks.values()]
    return report


def _report(task: Task, count_tokens: Callable[[str], int] | None) -> TaskReport:
    every = [*task.train, *task.test]
    inputs, targets = [e.input for e in every], [e.targets[0] for e in every]
    seen = {e.input for e in task.train}
    return TaskReport(
        name=task.name,
        held_out=task.held_out,
        category=task.category,
        train=len(task.train),
        test=len(task.test),
        input_chars=LengthSummary.of([len(t) for t in inputs]),
        target_chars=LengthSummary.of([len(t) for t in targets]),
        input_tokens=LengthSummary.of([count_tokens(t) for t in inputs]) if count_tokens else None,
        target_tokens=LengthSummary.of([count_tokens(t) for t in targets]) if count_tokens else None,
        labels=dict(Counter(targets).most_common()) if task.choices else {},
        choices=len(task.choices),
        duplicates_train=len(task.train) - len(seen),
        duplicates_test=_repeats(task.test),
        duplicates_between=sum(e.input in seen for e in task.test),
    )


def _repeats(examples: Sequence[Example]) -> int:
    return len(examples) - len({e.input for e in examples})
