"""Tasks: what they are, how they are read, drawn and made into batches.

Nothing here imports torch; `mhr.data.samplers` and `mhr.data.collators` do.
"""

from __future__ import annotations

from mhr.data.example import Example, Task, TaskCollection
from mhr.data.load import load_tasks
from mhr.data.reading import Fault, Faults, readers
from mhr.data.rows import parse_column_map
from mhr.data.skills import skills_of, skills_suite

__all__ = [
    "Example",
    "Fault",
    "Faults",
    "Task",
    "TaskCollection",
    "load_tasks",
    "parse_column_map",
    "readers",
    "skills_of",
    "skills_suite",
]
