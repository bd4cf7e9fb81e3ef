"""Tasks as one file, which every run of a study reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mhr.data import Example, Task
from mhr.files import make_folder, write_text_atomically


def lines_of(examples: Sequence[Example], split: str, **columns: object) -> str:
    """Examples as rows of JSONL, without what is empty. columns: further ones, the same in every row."""
    known = [{name: value for name, value in dataclasses.asdict(e).items() if value} for e in examples]
    rows = [{**row, "split": split, **columns} for row in known]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_collection(file: Path, tasks: Iterable[Task], sizes: Mapping[str, tuple[int, int]]) -> str:
    """Write the first (train, test) examples of each task, as many as `sizes` says; returns the file's path."""
    text = "".join(
        lines_of(part[:most], split, held_out=task.held_out, category=task.category, **_definition(task))
        for task in tasks
        for part, split, most in zip((task.train, task.test), ("train", "test"), sizes[task.name], strict=True)
    )
    make_folder(file.parent)
    return str(write_text_atomically(file, text))


def _definition(task: Task) -> dict[str, str]:
    return {"definition": task.definition} if task.definition else {}


@dataclass(frozen=True)
class Tasks:
    """The file that runs read, the tasks of it that are trained on, and those that are adapted to and judged."""

    file: str
    training: tuple[str, ...]
    judged: tuple[str, ...]


def training_file(
    output: Path, name: str, tasks: Iterable[Task], training: Sequence[str], sizes: Mapping[str, tuple[int, int]]
) -> str:
    """The tasks that `sizes` names, as `write_collection` writes them into tasks/NAME.jsonl, all of them held out but for `training`."""
    kept = [dataclasses.replace(task, held_out=task.name not in training) for task in tasks if task.name in sizes]
    return write_collection(output / "tasks" / f"{name}.jsonl", kept, sizes)


def spread_over(tasks: Sequence[Task], n: int) -> list[str]:
    """The names of `n` tasks, evenly spaced in the order of their categories."""
    ordered = sorted(tasks, key=lambda task: task.category)
    return [ordered[round((i + 0.5) * len(ordered) / n - 0.5)].name for i in range(n)]
