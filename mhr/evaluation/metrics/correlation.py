"""Answers that are numbers beside targets that are: correlations from -1 to 1, as scipy has them, and squared error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mhr.data.example import Example
from mhr.data.labels import number_of
from mhr.evaluation.metrics.metric import NUMBER, Judged, Undefined, measures

NO_NUMBER = -1.0
"""What an answer that is no number counts as, as in T5's evaluation of STS-B (Raffel et al. 2020)."""


def no_numbers(examples: Sequence[Example]) -> str | None:
    other = next((e.targets[0] for e in examples if number_of(e.targets[0]) is None), None)
    return None if other is None else f"needs numbers as targets, and {other!r:.60} is none"


@measures("pearson", NUMBER, misfit=no_numbers)
def pearson(judged: Judged) -> float:
    """Pearson correlation: the covariance of answers and targets over the product of their standard deviations."""
    from scipy.stats import pearsonr

    return _correlation(judged, pearsonr)


@measures("spearman", NUMBER, misfit=no_numbers)
def spearman(judged: Judged) -> float:
    """Spearman correlation: the Pearson correlation of ranks, equal values at the mean of their ranks."""
    from scipy.stats import spearmanr

    return _correlation(judged, spearmanr)


@measures("mse", NUMBER, misfit=no_numbers, scored=False)
def mean_squared_error(judged: Judged) -> float:
    """Mean squared error: mean (answer - target)^2."""
    truth, given = _numbers(judged)
    return sum((a - t) ** 2 for a, t in zip(given, truth, strict=True)) / len(truth)


def _numbers(judged: Judged) -> tuple[list[float], list[float]]:
    """Targets and answers as numbers."""
    truth = [number_of(targets[0]) for targets in judged.targets]
    found = [number_of(answer) for answer in judged.answers]
    if strange := found.count(None):
        judged.remarks.append(f"{strange} of {len(found)} answers are no numbers, and count as {NO_NUMBER:g}")
    return [t for t in truth if t is not None], [NO_NUMBER if a is None else a for a in found]


def _correlation(judged: Judged, correlate: Callable[..., Any]) -> float:
    truth, given = _numbers(judged)
    if len(given) < 2:
        raise Undefined("one example has no correlation")
    for values, what in ((truth, "targets"), (given, "answers")):
        if len(set(values)) == 1:
            raise Undefined(f"all {what} are {values[0]:g}")
    value = float(correlate(given, truth).statistic)
    if not math.isfinite(value):  # they differ by less than a float holds
        raise Undefined("the answers or targets are too near to one another")
    return min(max(value, -1.0), 1.0)
