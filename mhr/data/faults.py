"""How readers collect errors in a collection, and notes on it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mhr.errors import ConfigError, DataError, nearest

ON_BAD_ROW = ("error", "skip")

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a collection, and where: a file, its line (0 where no line applies), a message."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


class Faults:
    """Where readers tell faults. Strict, the first one is raised as a DataError; otherwise they are collected.

    With `on_bad_row` "skip", a faulty row is left out and counted under its task; a faulty file is a fault all the same.
    """

    def __init__(self, strict: bool = True, on_bad_row: str = "error"):
        if on_bad_row not in ON_BAD_ROW:
            raise ConfigError(
                f"on_bad_row is {on_bad_row!r}, expected error or skip: {nearest(str(on_bad_row), ON_BAD_ROW)}"
            )
        self.strict, self.on_bad_row = strict, on_bad_row
        self.found: list[Fault] = []
        self._skipped: Counter[str] = Counter()
        self._first: Fault | None = None

    def add(self, file: Path | str, line: int, message: str) -> None:
        """Tell a fault of a file."""
        fault = Fault(printable(str(file)), line, printable(message))
        if self.strict:
            raise DataError(str(fault))
        self.found.append(fault)

    def row(self, file: Path | str, line: int, message: str, task: str) -> None:
        """Tell a fault of one row, or skip it."""
        if self.on_bad_row == "error":
            self.add(file, line, message)
            return
        self._first = self._first or Fault(printable(str(file)), line, printable(message))
        self._skipped[printable(task)] += 1

    @property
    def skipped(self) -> list[str]:
        """A line on the rows that were skipped; none without any."""
        if not self._skipped:
            return []
        total, counts = sum(self._skipped.values()), [f"{task} {n}" for task, n in self._skipped.items()]
        return [f"faulty rows skipped: {total} ({_some(counts)}), the first: {self._first}"]


class Notes:
    """Notes of a reader on its tasks, one line for all tasks with the same note."""

    def __init__(self) -> None:
        self._tasks: dict[str, list[str]] = {}

    def add(self, what: str, task: str = "", count: str = "") -> None:
        """Note `what` of a task, or of the whole collection; `count` stands behind the task's name."""
        named = self._tasks.setdefault(what, [])
        if task:
            named.append(f"{task} ({count})" if count else task)

    @property
    def lines(self) -> list[str]:
        return [printable(f"{_some(tasks)}: {what}" if tasks else what) for what, tasks in self._tasks.items()]


def _some(items: list[str], most: int = 4) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def printable(text: str) -> str:
    """One line that any terminal takes: control characters and halves of surrogate pairs escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def has_surrogate(*texts: str) -> bool:
    """Whether a string holds half of a surrogate pair, which JSON may and UTF-8 cannot."""
    return any(not text.isascii() and _SURROGATE.search(text) for text in texts)
