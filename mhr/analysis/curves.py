"""Learning curves: the loss that runs logged while they trained, and what their validations found."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mhr.runs.run import RunFolder


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean at each logged step, of the training loss or what else, with the lowest and the highest of the runs; all of one length.

    runs: how many runs it is the mean of.
    """

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    runs: int


def learning_curve(runs: Sequence[RunFolder]) -> Curve | None:
    """The curve of runs that are repetitions of one another, over the steps that all of them logged; None without any."""
    return _curve([{r["step"]: r["loss"] for r in run.metrics()} for run in runs])


def validation_curve(runs: Sequence[RunFolder], measure: str = "loss") -> Curve | None:
    """The same of the "loss" or "score" of validations, means over tasks; None where there are none, or none has a score."""
    return _curve(
        [{step: v[measure] for step, v in run.validations().items() if v[measure] is not None} for run in runs]
    )


def _curve(logs: Sequence[dict[int, float]]) -> Curve | None:
    logs = [log for log in logs if log]
    if not logs:
        return None
    steps = sorted(set.intersection(*(set(log) for log in logs)))
    if not steps:
        return None
    columns = [[log[step] for log in logs] for step in steps]
    return Curve(
        steps, [statistics.mean(c) for c in columns], list(map(min, columns)), list(map(max, columns)), len(logs)
    )


def task_losses(run: RunFolder, last: float = 0.25) -> dict[str, float]:
    """Task -> mean of its logged training losses over the last quarter of the steps (each window counts once)."""
    records: list[dict[str, Any]] = run.metrics()
    if not records:
        return {}
    begin = records[-1]["step"] * (1 - last)
    losses: dict[str, list[float]] = {}
    for record in records:
        if record["step"] > begin:
            for task, loss in record["tasks"].items():
                losses.setdefault(task, []).append(loss)
    return {task: statistics.mean(values) for task, values in sorted(losses.items())}
