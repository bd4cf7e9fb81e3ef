"""Weights found by trying them: a search for the best score of a few numbers, without gradients and in few evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mhr.errors import ConfigError, MergeError

FIRST_STEP = 0.25
"""Standard deviation of the first step, as a share of the width of the bounds."""

GROWS, SHRINKS = math.exp(0.8), math.exp(-0.2)
"""What the step is multiplied by where a try was better and where it was worse: it stays as it is where one of five is better."""


@dataclass(frozen=True)
class FoundWeights:
    """What a search found.

    weights  the best; score: theirs. Of equal ones those that were found first
    scores   of every try, in their order; the first is that of the start
    """

    weights: list[float]
    score: float
    scores: list[float]


def find_weights(
    score: Callable[[list[float]], float],
    size: int,
    *,
    steps: int,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
    start: Sequence[float] | None = None,
) -> FoundWeights:
    """The weights w [size] within `bounds` of the highest `score(w)`, of `steps` tries.

        w' = clip(w + sigma z),  z ~ N(0, 1);  where that is worse than w, next w' = clip(w - sigma z)
        w' better: w = w', sigma = e^0.8 sigma;  as good: w = w';  worse: sigma = e^-0.2 sigma

    a (1+1) evolution strategy with the one-fifth success rule (Rechenberg 1973) and mirrored samples (Brockhoff et al. 2010). It
    begins at `start` (None: 1 / size each, within the bounds), which is the first try. It takes scores as they come, with no noise assumed,
    and moves on along equal ones, of which a metric of few examples has many. The same seed gives the same tries on every machine.

    Raises ConfigError for settings out of range, MergeError for a score that is not a number; -inf is one, the worst.
    """
    low, high = bounds
    if size < 1 or steps < 1 or seed < 0:
        raise ConfigError(
            f"size is {size}, steps are {steps}, seed is {seed}: expected at least 1 weight, 1 step and a seed of at least 0"
        )
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"bounds are {bounds}: expected two finite numbers, the lower one first")
    if start is not None and len(start) != size:
        raise ConfigError(f"start has {len(start)} numbers for {size} weights: expected one for each")

    def value(weights: np.ndarray) -> float:
        found = float(score(weights.tolist()))
        if math.isnan(found):
            told = ", ".join(f"{w:.3g}" for w in weights)
            raise MergeError(f"the score of weights {told} is not a number: nothing can be searched for by it")
        scores.append(found)
        return found

    scores: list[float] = []
    random = np.random.default_rng(seed)
    here = np.clip(np.full(size, 1 / size) if start is None else np.asarray(start, dtype=np.float64), low, high)
    best, top = here, value(here)
    now, sigma, mirrored = top, FIRST_STEP * (high - low), None
    for _ in range(steps - 1):
        step = random.standard_normal(size) if mirrored is None else mirrored
        there = np.clip(here + sigma * step, low, high)
        found = value(there)
        mirrored = -step if mirrored is None and found < now else None
        if found < now:
            sigma *= SHRINKS
            continue
        if found > now:
            sigma *= GROWS
        here, now = there, found
        if found > top:
            best, top = there, found
    return FoundWeights(best.tolist(), top, scores)
