"""Correlations of answers that are numbers with targets that are, from -1 to 1, as scipy has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mhr.data.example import Example
from mhr.evaluation.metrics.metric import NUMBER, Judged, Undefined, measures

NO_NUMBER = -1.0
"""What an answer that is no number counts as, as in T5's evaluation of STS-B (Raffel et al. 2020)."""


def number_of(text: str) -> float | None:
    """The number that a text is, None for any other text, infinity and NaN."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


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


def _correlation(judged: Judged, correlate: Callable[..., Any]) -> float:
    truth = [number_of(targets[0]) for targets in judged.targets]
    found = [number_of(answer) for answer in judged.answers]
    if strange := found.count(None):
        judged.remarks.append(f"{strange} of {len(found)} answers are no numbers, and count as {NO_NUMBER:g}")
    given = [NO_NUMBER if value is None else value for value in found]
    if len(given) < 2:
        raise Undefined("one example has no correlation")
    for values, what in ((truth, "targets"), (given, "answers")):
        if len(set(values)) == 1:
            raise Undefined(f"all {what} are {values[0]:g}")
    value = float(correlate(given, truth).statistic)
    if not math.isfinite(value):  # they differ by less than a float holds
        raise Undefined("the answers or targets are too near to one another")
    return min(max(value, -1.0), 1.0)
