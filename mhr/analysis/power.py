"""How large a difference a plan of seeds and tasks can show: before the runs, from the variances of a pilot."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mhr.analysis.seed_tests import LEVEL, NEGLIGIBLE

POWER = 0.8
MOST_SEEDS = 1000
_GRID = (np.arange(2000) + 0.5) / 2000


@dataclass(frozen=True, slots=True)
class Components:
    """What paired differences of a task and a seed are made of: `mean + task + seed + residual`.

    seeds     standard deviation of what all tasks of a seed have in common
    residual  of what is left: task x seed, and the drawing of shots and test examples
    """

    seeds: float
    residual: float

    def of_seed_means(self, tasks: int) -> float:
        """Standard deviation of the mean over `tasks` tasks from seed to seed: `sqrt(seeds^2 + residual^2 / tasks)`.

        The tasks are taken as given: how they differ from one another is the same in every seed.
        """
        return math.sqrt(self.seeds**2 + self.residual**2 / tasks)


def components(differences: np.ndarray) -> Components | None:
    """The components of `differences` [seeds, tasks], by the mean squares of a two-way layout with one value a cell; a negative
    estimate for the seeds is 0. None for fewer than two seeds or two tasks."""
    seeds, tasks = differences.shape
    if min(seeds, tasks) < 2:
        return None
    by_seed, by_task = differences.mean(axis=1, keepdims=True), differences.mean(axis=0, keepdims=True)
    left = differences - by_seed - by_task + differences.mean()
    residual = float((left**2).sum()) / ((seeds - 1) * (tasks - 1))
    of_means = float(by_seed.var(ddof=1))
    return Components(math.sqrt(max(of_means - residual / tasks, 0.0)), math.sqrt(residual))


def power(difference: float, sd: float, seeds: int, level: float = LEVEL) -> float:
    """Chance that a two-sided t test over `seeds` seed means of standard deviation `sd` finds a true `difference`.

    `P(|T| > t)`, T noncentral with n - 1 degrees of freedom and noncentrality `difference / (sd / sqrt(n))`.
    """
    if seeds < 2:
        return 0.0
    if sd <= NEGLIGIBLE:  # as sure as the signs of so many seeds
        return float(abs(difference) > NEGLIGIBLE and 2 * 0.5**seeds < level)
    shift = abs(difference) / (sd / math.sqrt(seeds))
    limits = _spreads(seeds - 1) * stats.t.isf(level / 2, seeds - 1)
    return float((stats.norm.sf(limits - shift) + stats.norm.cdf(-limits - shift)).mean())


def power_of_equivalence(margin: float, sd: float, seeds: int, difference: float = 0.0, level: float = LEVEL) -> float:
    """Chance that `mhr.analysis.seed_tests.equivalence` finds a true `difference` within `margin`."""
    if seeds < 2:
        return 0.0
    if sd <= NEGLIGIBLE:
        return float(abs(difference) < margin and 0.5**seeds < level)
    error = sd / math.sqrt(seeds)
    room = _spreads(seeds - 1) * stats.t.isf(level, seeds - 1)
    low, high = (-margin - difference) / error + room, (margin - difference) / error - room
    return float(np.maximum(stats.norm.cdf(high) - stats.norm.cdf(low), 0.0).mean())


def detectable(sd: float, seeds: int, wanted: float = POWER, level: float = LEVEL) -> float | None:
    """The true difference that is found with chance `wanted`: any where `sd` is 0 and so many seeds can show one by their signs. None for
    fewer than two seeds, or where these cannot."""
    if seeds < 2:
        return None
    if sd <= NEGLIGIBLE:
        return 0.0 if 2 * 0.5**seeds < level else None
    low, high = 0.0, 1.0
    while power(high, 1.0, seeds, level) < wanted:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, 1.0, seeds, level) < wanted else (low, middle)
    return high * sd


def seeds_for(difference: float, sd: float, wanted: float = POWER, level: float = LEVEL) -> int | None:
    """Seeds with which a true `difference` is found with chance `wanted`; None where MOST_SEEDS are too few."""
    low, high = 1, MOST_SEEDS
    if power(difference, sd, high, level) < wanted:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(difference, sd, middle, level) < wanted else (low, middle)
    return high


def _spreads(freedom: int) -> np.ndarray:
    """Quantiles, evenly spaced, of the estimated over the true standard deviation with so many degrees of freedom."""
    return np.sqrt(stats.chi2.ppf(_GRID, freedom) / freedom)
