"""Tasks: what they are, how they are read, drawn and made into batches.

Nothing here imports torch; `mhr.data.samplers` and `mhr.data.collators` do.
"""

from __future__ import annotations

from mhr.data.example import Example, Task, TaskCollection
from mhr.data.skills import skills_of, skills_suite

__all__ = ["Example", "Task", "TaskCollection", "skills_of", "skills_suite"]
