"""What one task taught, used for another: a transfer matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from mhr.data import TaskCollection
from mhr.errors import ConfigError
from mhr.evaluation import evaluate, load_model
from mhr.loading import Loading

Matrix = dict[str, dict[str, float]]
"""Trained on -> evaluated on -> score."""


def transfer_matrix(
    run: str | Path,
    collection: TaskCollection,
    *,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    base: str | None = None,
    loading: Loading | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Matrix:
    """Scores on every task of `collection` (columns) when all examples are routed as one task of the bank (rows).

    The diagonal is a task routed as itself. Elsewhere it says how well the skills that one task mixes serve another: with one
    LoRA per task, plain transfer from task to task.

    tasks   rows; None takes every task of the bank that is in the collection
    limit   examples of each task, the first ones
    base, loading   see `load_model`

    Raises ConfigError for a model without a bank and where the bank knows none of the tasks, TaskError for an unknown name.
    """
    loaded = load_model(run, base, loading=loading)
    if loaded.bank is None:
        raise ConfigError(f"{run} routes no tasks: a transfer matrix needs a run with a bank of adapters")
    rows = [name for name in collection if name in loaded.bank.tasks] if tasks is None else list(tasks)
    if not rows:
        raise ConfigError(f"the bank of {run} holds none of the {len(collection)} tasks: name tasks it was trained on")
    matrix: Matrix = {}
    for i, row in enumerate(rows):
        say(f"Routed as {row} ({i + 1} of {len(rows)})")
        result = evaluate(dataclasses.replace(loaded, task=row), collection, limit=limit, progress=False)
        matrix[row] = {name: measures["score"] for name, measures in result.tasks.items()}
    return matrix
