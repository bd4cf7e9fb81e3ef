"""How many texts were truncated, task by task: what training or a score did not see is counted and reported. So are rows without any
token that is trained on, and conversations of which the last turn alone is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mhr.data.tokens import IGNORED, TokenRow


class Truncation:
    """Counts of texts by (task, part), a part being "inputs" or "targets": all that were `seen`, and those `cut`. Counts of rows by
    task: those that are `masked` whole, and those of which the last turn alone is trained on, `last_only`."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()
        self.cut: Counter[tuple[str, str]] = Counter()
        self.masked: Counter[str] = Counter()
        self.last_only: Counter[str] = Counter()

    def note(self, part: str, tasks: Iterable[str], cut: Iterable[bool]) -> None:
        """Count one text of each task, and whether it was truncated."""
        for task, was_cut in zip(tasks, cut, strict=True):
            self.seen[task, part] += 1
            self.cut[task, part] += was_cut

    def note_rows(self, tasks: Sequence[str], rows: Sequence[TokenRow]) -> None:
        """Count the rows of these tasks of which nothing is trained on, or the last turn alone."""
        for task, row in zip(tasks, rows, strict=True):
            if all(label == IGNORED for label in row.labels):
                self.masked[task] += 1
            if row.last_only:
                self.last_only[task] += 1

    def add(self, other: Truncation) -> None:
        """Count what another process counted."""
        self.seen.update(other.seen)
        self.cut.update(other.cut)
        self.masked.update(other.masked)
        self.last_only.update(other.last_only)

    def to_json(self) -> dict[str, Any]:
        """All counts, as `from_json` takes them."""
        return {
            "texts": [[task, part, n, self.cut[task, part]] for (task, part), n in sorted(self.seen.items())],
            "masked": dict(self.masked),
            "last_only": dict(self.last_only),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Truncation:
        counts = cls()
        for task, part, seen, cut in values["texts"]:
            counts.seen[task, part], counts.cut[task, part] = seen, cut
        counts.masked.update(values["masked"])
        counts.last_only.update(values["last_only"])
        return counts

    def describe(self) -> dict[str, Any]:
        """For run.json: {"cut", "of": texts in all, "tasks": {task: {part: {"cut", "of"}}}}, of the tasks that lost some; where there
        are any, "masked" and "last_only": {task: rows}."""
        tasks: dict[str, dict[str, dict[str, int]]] = {}
        for task, part in sorted(key for key, n in self.cut.items() if n):
            tasks.setdefault(task, {})[part] = {"cut": self.cut[task, part], "of": self.seen[task, part]}
        rows = {"masked": dict(sorted(self.masked.items())), "last_only": dict(sorted(self.last_only.items()))}
        found = {name: counts for name, counts in rows.items() if counts}
        return {"cut": self.cut.total(), "of": self.seen.total(), "tasks": tasks, **found}


def truncation_line(described: dict[str, Any] | None) -> str | None:
    """`Truncation.describe` as one line; None where nothing was truncated, or nothing is recorded."""
    if not described or not described["cut"]:
        return None
    lost = {task: sum(part["cut"] for part in parts.values()) for task, parts in described.get("tasks", {}).items()}
    return f"truncated {described['cut']} of {described['of']} texts" + _worst(lost)


def untrained_lines(described: dict[str, Any] | None) -> list[str]:
    """What `Truncation.describe` says of rows that are not trained on as asked for, a line each."""
    lines = []
    for name, what in (
        ("masked", "have no token that is trained on"),
        (
            "last_only",
            "are trained on in their last turn alone, since the chat template writes earlier ones in another way",
        ),
    ):
        counts = (described or {}).get(name, {})
        if counts:
            lines.append(f"{sum(counts.values())} rows {what}{_worst(counts)}")
    return lines


def _worst(lost: dict[str, int], most: int = 3) -> str:
    """The tasks that lost most, in brackets."""
    worst = sorted(lost, key=lambda task: -lost[task])[:most]
    named = ", ".join(f"{task} {lost[task]}" for task in worst) + (", ..." if len(lost) > most else "")
    return f" ({named})" if named else ""
