"""What banks can be imported from. To add a format, write a function under `@reads_bank` in a module of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mhr.adapters.checkpoint import AdapterCheckpoint
from mhr.adapters.importing.source import ForeignPath
from mhr.adapters.peft_poly import numbered
from mhr.errors import CheckpointError, TaskError
from mhr.layers.bank import check_names
from mhr.registry import Registry


@dataclass
class ForeignBank:
    """A bank as another program left it, which knows no model yet.

    bank      its base model by the name that the file gives, "" where it gives none; its groups by the names of any one layer of each.
              What it calls its tasks is "task-0" and so on where the file does not tell
    settings  settings of a run that the file tells, by their full names
    steps     optimizer steps of training, None where unknown
    notes     what a reader has to know besides, one line each
    """

    bank: AdapterCheckpoint
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Format:
    """A layout of files.

    title       for users
    recognises  whether something is of this layout, sound or not
    read        what it holds. Raises CheckpointError, naming the file and what of it, where it is damaged or cannot be taken exactly
    """

    title: str
    recognises: Callable[[ForeignPath], bool]
    read: Callable[[ForeignPath], ForeignBank]


formats: Registry[Format] = Registry("format of banks")


def reads_bank(
    name: str, title: str, recognises: Callable[[ForeignPath], bool]
) -> Callable[[Callable[[ForeignPath], ForeignBank]], Callable[[ForeignPath], ForeignBank]]:
    """Register a function as the reader of a format; formats are tried in the order of their registration."""

    def decorate(read: Callable[[ForeignPath], ForeignBank]) -> Callable[[ForeignPath], ForeignBank]:
        formats.register(name)(Format(title, recognises, read))
        return read

    return decorate


def recognised(source: ForeignPath) -> str:
    """The name of the format that a source is of. Raises CheckpointError for none."""
    for name, one in formats.items():
        if one.recognises(source):
            return name
    raise CheckpointError(
        f"{source.path} is none of what is imported: {'; '.join(one.title for one in formats.values())}{source.held_briefly()}"
    )


def with_names(found: ForeignBank, names: Sequence[str] | None, path: str) -> ForeignBank:
    """What was found, with its tasks called by `names`. Raises TaskError where their number is another one."""
    if names is None:
        return found
    tasks = found.bank.tasks
    if len(names) != len(tasks):
        raise TaskError(
            f"{len(names)} task names are given, but {path} has {len(tasks)} tasks: name each, in the order of its training"
        )
    if tasks != numbered(len(tasks)) and sorted(tasks) != sorted(names):
        found.notes.append(f"tasks that {path} calls {', '.join(map(repr, tasks[:4]))} were given other names")
    renamed = dict(zip(tasks, check_names(names), strict=True))
    found.bank.tasks = list(renamed.values())
    heads = found.bank.heads
    if heads is not None:
        found.bank.heads = replace(
            heads, tasks={renamed[task]: number for task, number in heads.tasks.items() if task in renamed}
        )
    return found
