"""How many texts were truncated, task by task: what training or a score did not see is counted and reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any


class Truncation:
    """Counts of texts by (task, part), a part being "inputs" or "targets": all that were `seen`, and those `cut`."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()
        self.cut: Counter[tuple[str, str]] = Counter()

    def note(self, part: str, tasks: Iterable[str], cut: Iterable[bool]) -> None:
        """Count one text of each task, and whether it was truncated."""
        for task, was_cut in zip(tasks, cut, strict=True):
            self.seen[task, part] += 1
            self.cut[task, part] += was_cut

    def add(self, other: Truncation) -> None:
        """Count what another process counted."""
        self.seen.update(other.seen)
        self.cut.update(other.cut)

    def to_json(self) -> dict[str, Any]:
        """All counts, as `from_json` takes them."""
        return {"texts": [[task, part, n, self.cut[task, part]] for (task, part), n in sorted(self.seen.items())]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Truncation:
        counts = cls()
        for task, part, seen, cut in values["texts"]:
            counts.seen[task, part], counts.cut[task, part] = seen, cut
        return counts

    def describe(self) -> dict[str, Any]:
        """For run.json: {"cut", "of": texts in all, "tasks": {task: {part: {"cut", "of"}}}}, of the tasks that lost some."""
        tasks: dict[str, dict[str, dict[str, int]]] = {}
        for task, part in sorted(key for key, n in self.cut.items() if n):
            tasks.setdefault(task, {})[part] = {"cut": self.cut[task, part], "of": self.seen[task, part]}
        return {"cut": self.cut.total(), "of": self.seen.total(), "tasks": tasks}


def truncation_line(described: dict[str, Any] | None) -> str | None:
    """`Truncation.describe` as one line; None where nothing was truncated, or nothing is recorded."""
    if not described or not described["cut"]:
        return None
    lost = {task: sum(part["cut"] for part in parts.values()) for task, parts in described.get("tasks", {}).items()}
    worst = sorted(lost, key=lambda task: -lost[task])[:3]
    named = ", ".join(f"{task} {lost[task]}" for task in worst) + (", ..." if len(lost) > 3 else "")
    return f"truncated {described['cut']} of {described['of']} texts" + (f" ({named})" if named else "")
