"""Task merge: the bank as one task sees it, as one plain adapter. Nothing is approximated."""

from __future__ import annotations

from mhr.checkpoint import AdapterCheckpoint, routing_weights
from mhr.checkpoint.plain import PlainAdapter
from mhr.errors import TaskError, nearest
from mhr.merging.collapse import collapse, merge_methods


@merge_methods.register("task")
def merge_task(checkpoint: AdapterCheckpoint, *, task: str) -> PlainAdapter:
    """`collapse` with the routing weights of `task`. Raises TaskError for a task that the bank does not hold."""
    if task not in checkpoint.tasks:
        raise TaskError(f"unknown task {task!r}: {nearest(task, checkpoint.tasks)}")
    row = checkpoint.tasks.index(task)
    return collapse(checkpoint, {group: table[row] for group, table in routing_weights(checkpoint).items()})
