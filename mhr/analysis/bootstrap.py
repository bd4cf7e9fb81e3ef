"""Intervals for a mean over seeds and tasks, both of which could have been others."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from mhr.analysis.seed_tests import NEGLIGIBLE

N_DRAWS = 10_000


def crossed_interval(
    differences: np.ndarray, coverage: float = 0.95, draws: int = N_DRAWS, seed: int = 0
) -> tuple[float, float] | None:
    """An interval for the mean of `differences` [seeds, tasks], by the crossed bootstrap: seeds and tasks are drawn again with
    replacement, independently of each other (the pigeonhole bootstrap, Owen 2007), so that it covers other seeds AND other tasks
    of the same kind.

    Percentiles `q` of the drawn means, each moved away from the mean by `sqrt(n / (n - 1)) t / z`, the quantiles of Student's t
    (n - 1 degrees of freedom) and of the normal distribution, n the number of seeds: without it few seeds would be
    covered too rarely. A single task is not drawn. None for a single seed, and where all differences are the same: their spread cannot be
    known, and is hardly 0.
    """
    seeds, tasks = differences.shape
    if seeds < 2 or np.ptp(differences) <= NEGLIGIBLE:
        return None
    random = np.random.default_rng(seed)
    by_seed = random.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    by_task = random.multinomial(tasks, np.full(tasks, 1 / tasks), draws) / tasks
    drawn = ((by_seed @ differences) * by_task).sum(axis=1)
    tail = (1 - coverage) / 2
    wider = math.sqrt(seeds / (seeds - 1)) * stats.t.isf(tail, seeds - 1) / stats.norm.isf(tail)
    mean = float(differences.mean())
    low, high = (mean + wider * (float(q) - mean) for q in np.quantile(drawn, (tail, 1 - tail)))
    return low, high
