"""What a reader of run.json or adapt.json has to know and would not look for: what was left out, and what was skipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def notes_of(described: Mapping[str, Any]) -> list[str]:
    """One line for the tasks that could not be used, and one for each damaged checkpoint that a resumed run went past."""
    notes = []
    left_out = described.get("left_out") or {}
    if left_out:
        task, reason = next(iter(left_out.items()))
        rest = f" (and {len(left_out) - 1} more tasks)" if len(left_out) > 1 else ""
        notes.append(f"task {task!r} was left out: {reason}{rest}")
    return [*notes, *(described.get("skipped") or [])]
