"""Task merge: the bank as one task sees it, as one plain adapter. Nothing is approximated."""

from __future__ import annotations

from mhr.adapters.checkpoint import AdapterCheckpoint
from mhr.adapters.collapse import collapse_task
from mhr.adapters.plain import PlainAdapter
from mhr.merging.combination import merge_methods


@merge_methods.register("task")
def merge_task(checkpoint: AdapterCheckpoint, *, task: str) -> PlainAdapter:
    """`collapse` with the routing weights of `task`. Raises TaskError for a task that the bank does not hold."""
    return collapse_task(checkpoint, task)
