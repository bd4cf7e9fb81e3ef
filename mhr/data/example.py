"""What every reader yields and everything after it consumes: examples, tasks and collections of tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mhr.data.masked import Piece
from mhr.errors import DataError, TaskError, nearest


@dataclass(frozen=True, slots=True)
class Example:
    """One question to a model.

    task     name of its task
    input    the text the model reads
    targets  every acceptable answer; the first is the one trained on
    choices  the answers to rank among, empty where the task is free generation; holds targets[0] where not empty
    id       identifier inside its collection, for error lines and for telling duplicates
    messages the turns of a conversation as {"role", "content", ...}, for a chat template; empty where the row was none.
             `input` holds them in plain words, without the last assistant turn, which is targets[0]
    part     what part of its split it is of, where these are judged apart: "matched" or "mismatched" genres of MNLI
    pieces   `input` piece by piece, where a prompt template put a mask into it; empty where none did
    tools    definitions of the tools that the conversation may call, as the chat template takes them
    """

    task: str
    input: str
    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()
    id: str = ""
    messages: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)
    part: str = ""
    pieces: tuple[Piece, ...] = field(default=(), compare=False)
    tools: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)

    @property
    def compared(self) -> tuple[str, ...]:
        """The choices that a loss compares, in their order: targets[0], and the wrong ones. The other accepted ones are neither."""
        right = self.targets[0]
        return tuple(c for c in dict.fromkeys(self.choices) if c == right or c not in self.targets)


def examples_digest(examples: Iterable[Example], *texts: str) -> str:
    """What distinguishes examples in their order, and texts beside them, from others: the beginning of a SHA-256."""
    found = hashlib.sha256(repr(texts).encode("utf-8", "surrogatepass"))
    for example in examples:
        found.update(b"\n" + repr(example).encode("utf-8", "surrogatepass"))  # of one line, and with its messages
    return found.hexdigest()[:16]


@dataclass(slots=True)
class Task:
    """One task: its examples by split ("train" to learn from, "test" to be judged on) and what is known of it.

    validation holds those of a validation split that is neither trained nor judged on, as there is a test split: what validation
    while training looks at.
    held_out says that the whole task is kept away from pretraining; its "train" examples are where shots are drawn.
    definition says in words what is asked for; empty where nothing does.
    context holds training examples that were set apart, for its adapter to be generated from while it is trained on the others.
    metrics are those that its data name, the first for its score; empty where they name none (`mhr.runs.scoring.METRICS`).
    untaught are labels by split ("validation", "test") that its training split lacks, where the choices were made of its targets and
    not given: nothing else says that they are among its classes.
    """

    name: str
    train: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)
    held_out: bool = False
    category: str = ""
    choices: tuple[str, ...] = ()
    validation: list[Example] = field(default_factory=list)
    metrics: tuple[str, ...] = ()
    definition: str = ""
    context: list[Example] = field(default_factory=list)
    untaught: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def split(self, name: str) -> list[Example]:
        if name not in ("train", "test"):
            raise DataError(f"unknown split {name!r} of task {self.name!r}: expected 'train' or 'test'")
        return self.train if name == "train" else self.test


class TaskCollection(Mapping[str, Task]):
    """Tasks by name, in a fixed order.

    source      where they were read
    notes       notes on how they were read, a line each: what was left out, what was drawn
    recognised  what the reader took the files for, a line each: format, columns, task and split
    """

    def __init__(
        self,
        tasks: list[Task],
        source: str = "",
        notes: list[str] | None = None,
        recognised: list[str] | None = None,
    ):
        self.source = source
        self.notes = list(notes or [])
        self.recognised = list(recognised or [])
        self._tasks: dict[str, Task] = {}
        for task in tasks:
            if task.name in self._tasks:
                raise DataError(
                    f"{source or 'collection'}: task {task.name!r} appears twice; task names must be distinct"
                )
            self._tasks[task.name] = task

    def __getitem__(self, name: str) -> Task:
        try:
            return self._tasks[name]
        except KeyError:
            raise TaskError(
                f"unknown task {name!r} in {self.source or 'collection'}: {nearest(name, self._tasks)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def of(self, tasks: list[Task]) -> TaskCollection:
        """These tasks, with the notes of this collection."""
        return TaskCollection(tasks, self.source, self.notes, self.recognised)

    def select(self, names: list[str]) -> TaskCollection:
        """The named tasks, in the order of `names`. Raises TaskError with the nearest names for an unknown one."""
        return self.of([self[name] for name in names])

    def training(self) -> TaskCollection:
        """The tasks that pretraining may see."""
        return self.of([t for t in self.values() if not t.held_out])

    def held_out(self) -> TaskCollection:
        """The tasks kept away from pretraining."""
        return self.of([t for t in self.values() if t.held_out])
