"""Metrics of answers that are numbers, beside targets that are: correlations, from -1 to 1, as scipy has them, and squared error, as
scikit-learn has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mhr.data.example import Example
from mhr.data.labels import number_of
from mhr.evaluation.metrics.metric import NUMBER, Judged, Undefined, measures

NO_NUMBER = -1.0
"""What an answer that is no number counts as, as in T5's evaluation of STS-B (Raffel et al. 2020)."""

MOST = 1e100
"""Greatest size of a number: a model that repeats a digit has written none, and its square would be infinite."""


def _number(text: str) -> float | None:
    value = number_of(text)
    return None if value is None or abs(value) > MOST else value


def no_numbers(examples: Sequence[Example]) -> str | None:
    other = next((e.targets[0] for e in examples if _number(e.targets[0]) is None), None)
    return None if other is None else f"needs numbers as targets, and {other!r:.60} is none"


@measures("pearson", NUMBER, misfit=no_numbers, package="scipy")
def pearson(judged: Judged) -> float:
    """Pearson correlation: the covariance of answers and targets over the product of their standard deviations."""
    from scipy.stats import pearsonr

    return _correlation(judged, pearsonr)


@measures("spearman", NUMBER, misfit=no_numbers, package="scipy")
def spearman(judged: Judged) -> float:
    """Spearman correlation: the Pearson correlation of ranks, equal values at the mean of their ranks."""
    from scipy.stats import spearmanr

    return _correlation(judged, spearmanr)


@measures("mse", NUMBER, misfit=no_numbers, scored=False, package="scikit-learn")
def mse(judged: Judged) -> float:
    """The mean squared error, in squares of the targets' unit; less is better."""
    from sklearn.metrics import mean_squared_error

    found, truth = _numbers(judged)
    return float(mean_squared_error(truth, found))


def _correlation(judged: Judged, correlate: Callable[..., Any]) -> float:
    found, truth = _numbers(judged)
    _check_spread(truth, "targets")
    _check_spread(found, "answers")
    value = float(correlate(found, truth).statistic)
    if not math.isfinite(value):  # they differ by less than a float holds
        raise Undefined("the answers or targets are too near to one another")
    return min(max(value, -1.0), 1.0)


def _numbers(judged: Judged) -> tuple[list[float], list[float]]:
    """Answers and targets; answers that are no numbers of at most MOST are told."""
    given = [_number(answer) for answer in judged.answers]
    if strange := given.count(None):
        judged.remarks.append(f"{strange} of {len(given)} answers are no numbers, and count as {NO_NUMBER:g}")
    truth = [_number(targets[0]) for targets in judged.targets]
    return [NO_NUMBER if value is None else value for value in given], [value for value in truth if value is not None]


def _check_spread(values: Sequence[float], what: str) -> None:
    if len(values) < 2:
        raise Undefined("there is one example only")
    if len(set(values)) == 1:
        raise Undefined(f"all {what} are {values[0]:g}")
