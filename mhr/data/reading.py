"""What all readers share: their registry, their options, and how a fault in a file is told or collected."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mhr.data.example import Example, Task, TaskCollection
from mhr.data.templates import Templates
from mhr.errors import ConfigError, DataError
from mhr.registry import Registry


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read a collection; `load_tasks` documents each of them."""

    max_train: int | None = None
    limit_test: int = 100
    definitions: bool = True
    positives: int = 0
    column_map: Mapping[str, str] = field(default_factory=dict)
    split_list: str | None = None
    subset: str | None = None
    seed: int = 0
    templates: Templates | None = None

    def __post_init__(self) -> None:
        for name in ("limit_test", "positives", "max_train"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} is {value}, expected 0 or more")

    def cap(self, task: str, examples: list[Example]) -> list[Example]:
        """At most `max_train` examples, drawn by the seed and the task's name, in their own order."""
        if self.max_train is None or len(examples) <= self.max_train:
            return examples
        kept = random.Random(f"{task}/{self.seed}").sample(range(len(examples)), self.max_train)
        return [examples[i] for i in sorted(kept)]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a collection, and where: a file, its line (0 where no line applies), a message."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


class Faults:
    """Where readers tell faults. Strict, the first one is raised as a DataError; otherwise they are collected."""

    def __init__(self, strict: bool = True):
        self.strict = strict
        self.found: list[Fault] = []

    def add(self, file: Path | str, line: int, message: str) -> None:
        fault = Fault(str(file), line, message)
        if self.strict:
            raise DataError(str(fault))
        self.found.append(fault)


Reader = Callable[[str, ReadOptions, Faults], TaskCollection]

readers: Registry[Reader] = Registry("task reader")


def read_text(path: Path, faults: Faults) -> str | None:
    """The text of a UTF-8 file, or None after telling why it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        faults.add(path, line, f"byte {error.start} is not UTF-8: save the file as UTF-8")
    except OSError as error:
        faults.add(path, 0, f"cannot be read: {error.strerror}")
    return None


def label_set(examples: Sequence[Example], most: int = 20, uses: int = 10) -> tuple[str, ...]:
    """The labels of a task that looks like classification, sorted; empty for any other.

    It looks so where its examples have 2 to `most` different targets and at least `uses` examples for each on average.
    """
    labels: set[str] = set()
    for example in examples:
        labels.update(example.targets)
        if len(labels) > most:
            return ()
    if len(labels) < 2 or len(examples) < uses * len(labels):
        return ()
    return tuple(sorted(labels))


def finish(source: str, tasks: list[Task], notes: list[str], faults: Faults) -> TaskCollection:
    """The collection of a reader's tasks; nothing at all in it is a fault."""
    if not tasks and not faults.found:
        faults.add(source, 0, "no task was found")
    return TaskCollection(tasks, source, notes)
