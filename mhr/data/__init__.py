"""Tasks: what they are, how they are read, drawn and made into batches.

Nothing here imports torch; `mhr.data.samplers` and `mhr.data.collators` do.
"""

from __future__ import annotations

from mhr.data.example import Example, Task, TaskCollection
from mhr.data.faults import Fault, Faults
from mhr.data.load import load_tasks
from mhr.data.reading import readers
from mhr.data.skills import skills_of, skills_suite

__all__ = [
    "Example",
    "Fault",
    "Faults",
    "Task",
    "TaskCollection",
    "load_tasks",
    "readers",
    "skills_of",
    "skills_suite",
]
