"""What all readers share: their registry, their options, and what they make of the examples they read."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mhr.data.example import Example, Task, TaskCollection
from mhr.data.faults import Faults, Notes
from mhr.data.templates import Templates
from mhr.errors import ConfigError
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
    definition_form: str = "plain"
    train_seed: int | None = None
    max_test: int | None = None

    def __post_init__(self) -> None:
        for name in ("limit_test", "positives", "max_train", "max_test"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} is {value}, expected 0 or more")

    def cap(self, task: str, examples: list[Example]) -> list[Example]:
        """At most `max_train` examples, drawn by `train_seed` (None: `seed`) and the task's name, in their own order."""
        if self.max_train is None or len(examples) <= self.max_train:
            return examples
        seed = self.seed if self.train_seed is None else self.train_seed
        kept = random.Random(f"{task}/{seed}").sample(range(len(examples)), self.max_train)
        return [examples[i] for i in sorted(kept)]


ReadTasks = Callable[[str, ReadOptions, Faults], TaskCollection]


@dataclass(frozen=True, slots=True)
class Reader:
    """How collections of one kind are recognised and read.

    recognises  whether a path is one of its collections
    layout      what it reads, for the error line on a path that nothing recognises
    uses        the options that it heeds, of those that not every collection has a use for
    words       it puts rows into the words of templates as it reads them, while it holds their columns
    fallback    it is asked after all others
    """

    read: ReadTasks
    recognises: Callable[[str], bool]
    layout: str
    uses: tuple[str, ...] = ()
    words: bool = False
    fallback: bool = False


readers: Registry[Reader] = Registry("task reader")


def reads(
    name: str,
    recognises: Callable[[str], bool],
    layout: str,
    *,
    uses: tuple[str, ...] = (),
    words: bool = False,
    fallback: bool = False,
) -> Callable[[ReadTasks], ReadTasks]:
    """Register a function as the reader of the paths that `recognises` is true of, see `Reader`."""

    def decorate(read: ReadTasks) -> ReadTasks:
        readers.register(name)(Reader(read, recognises, layout, uses, words, fallback))
        return read

    return decorate


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


def untaught_labels(train: Iterable[Example], **splits: Sequence[Example]) -> dict[str, tuple[str, ...]]:
    """Split -> the first targets in it that no training example has, in their order; empty without training examples."""
    known = {example.targets[0] for example in train}
    found = {
        s: tuple(dict.fromkeys(e.targets[0] for e in own if e.targets[0] not in known)) for s, own in splits.items()
    }
    return {split: labels for split, labels in found.items() if labels and known}


def finish(
    source: str, tasks: list[Task], notes: Notes, faults: Faults, recognised: Sequence[str] = ()
) -> TaskCollection:
    """The collection of a reader's tasks; nothing at all in it is a fault."""
    if not tasks and not faults.found:
        faults.add(source, 0, "; ".join(["no task was found", *notes.lines, *faults.skipped]))
    return TaskCollection(tasks, source, [*notes.lines, *faults.skipped], list(recognised))
