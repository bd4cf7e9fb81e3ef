"""Tests in which the seed is the unit: the tasks of one trained model are not independent of one another, its seeds are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.05
EXACT_UP_TO = 16
"""Seeds of which every combination of signs is tried; of more, N_FLIPS random ones."""
N_FLIPS = 2**16
NEGLIGIBLE = 1e-12
"""Means and deviations of scores that are no larger are what rounding left of 0."""


def t_test(means: Sequence[float], limit: float = 0.0, side: str = "both") -> float | None:
    """p of Student's t over n seed means: how often `|mean - limit|` is as large where the true mean is `limit`.

    t = (mean - limit) / (sd / sqrt(n)), n - 1 degrees of freedom. side: "both", or the alternative that the mean is "above" or
    "below" the limit. None for fewer than two seeds. Where all means are equal there is no sd to go by: then `sign_flips`
    of them, or for one side half of it.
    """
    moved = np.asarray(means, dtype=np.float64) - limit
    n = len(moved)
    if n < 2:
        return None
    mean, sd = float(moved.mean()), float(moved.std(ddof=1))
    if sd <= NEGLIGIBLE * max(1.0, abs(limit)):
        if abs(mean) <= NEGLIGIBLE:
            return 1.0
        both = sign_flips(moved.tolist())
        return both if side == "both" else both / 2 if (mean > 0) == (side == "above") else 1.0
    t = mean / (sd / math.sqrt(n))
    if side == "both":
        return float(2 * stats.t.sf(abs(t), n - 1))
    return float(stats.t.sf(t if side == "above" else -t, n - 1))


def sign_flips(means: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of a permutation test: how often the sum of the seed means is as far from 0 when the sign of each is drawn at
    random. With n seeds it is at least 2 / 2^n, so fewer than six never reach .05.

    Exact for at most EXACT_UP_TO means that are not 0, otherwise `(1 + reached) / (1 + N_FLIPS)`.
    """
    moved = np.asarray([m for m in means if abs(m) > NEGLIGIBLE], dtype=np.float64)
    n = len(moved)
    if not n:
        return 1.0
    observed = abs(float(moved.sum())) - NEGLIGIBLE * float(np.abs(moved).sum())
    if n <= EXACT_UP_TO:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ moved) >= observed).mean())
    drawn = np.random.default_rng(seed).integers(0, 2, (N_FLIPS, n))
    return (1 + int((np.abs((1 - 2 * drawn) @ moved) >= observed).sum())) / (1 + N_FLIPS)


def equivalence(means: Sequence[float], margin: float) -> float | None:
    """p of two one-sided t tests (TOST, Schuirmann 1987) that the true mean lies within (-margin, margin): the larger of the
    p values of "above -margin" and "below margin". None for fewer than two seeds."""
    above, below = t_test(means, -margin, "above"), t_test(means, margin, "below")
    return None if above is None or below is None else max(above, below)


def holm(ps: Sequence[float]) -> list[float]:
    """The p values of several comparisons, adjusted so that the chance of even one false alarm stays at the level (Holm 1979).

    The i-th smallest of k is `max over j <= i of min(1, (k - j + 1) p_(j))`; in the order given.
    """
    adjusted, reached = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        reached = max(reached, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = reached
    return adjusted
