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


class WeightSearch:
    """A (1+1) evolution strategy over weights w [size] within `bounds`, for the highest score, asked and told in turns.

        w' = clip(w + sigma z),  z ~ N(0, 1);  where that is worse than w, next w' = clip(w - sigma z)
        w' better: w = w', sigma = e^0.8 sigma;  as good: w = w';  worse: sigma = e^-0.2 sigma

    with the one-fifth success rule (Rechenberg 1973) and mirrored samples (Brockhoff et al. 2010). The first tries are `starts`, of
    which the best is where it begins. It takes scores as they come, with no noise assumed, and moves on along equal ones, of which a metric
    of few examples has many. The same seed gives the same tries on every machine.

    weights, score  the best so far and its score; of equal ones those that were found first

    Raises ConfigError for settings out of range.
    """

    def __init__(self, size: int, starts: Sequence[Sequence[float]], *, seed: int = 0, bounds: tuple[float, float]):
        low, high = bounds
        if size < 1 or seed < 0:
            raise ConfigError(f"size is {size}, seed is {seed}: expected at least 1 weight and a seed of at least 0")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"bounds are {bounds}: expected two finite numbers, the lower one first")
        for start in starts:
            if len(start) != size:
                raise ConfigError(f"start has {len(start)} numbers for {size} weights: expected one for each")
        self._starts = [np.clip(np.asarray(start, dtype=np.float64), low, high) for start in starts]
        self._bounds = bounds
        self._random = np.random.default_rng(seed)
        self._sigma = FIRST_STEP * (high - low)
        self._here = self._best = self._asked = self._starts[0]
        self._now = self.score = -math.inf
        self._begun = False
        self._mirrored: np.ndarray | None = None
        self._step: np.ndarray | None = None

    @property
    def weights(self) -> list[float]:
        return [float(w) for w in self._best]

    def ask(self) -> list[float]:
        """The next weights to try."""
        if self._starts:
            self._step, self._asked = None, self._starts.pop(0)
        else:
            mirrored = self._mirrored
            self._step = self._random.standard_normal(len(self._here)) if mirrored is None else mirrored
            self._asked = np.clip(self._here + self._sigma * self._step, *self._bounds)
        return [float(w) for w in self._asked]

    def tell(self, score: float) -> None:
        """The score of the weights that were asked for last; -inf is one, the worst."""
        worse, better = score < self._now, score > self._now
        if self._step is not None:
            self._mirrored = -self._step if self._mirrored is None and worse else None
            self._sigma *= SHRINKS if worse else GROWS if better else 1.0
        if better or not self._begun or (self._step is not None and not worse):
            self._here, self._now = self._asked, score
        if score > self.score or not self._begun:
            self._best, self.score = self._asked, score
        self._begun = True


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
    """The weights w [size] within `bounds` of the highest `score(w)`, of `steps` tries of a `WeightSearch`.

    start  the first try; None: 1 / size each

    Raises ConfigError for settings out of range, MergeError for a score that is not a number; -inf is one, the worst.
    """
    if steps < 1:
        raise ConfigError(f"steps are {steps}: expected at least 1")
    first = [1 / max(size, 1)] * size if start is None else start
    search = WeightSearch(size, [first], seed=seed, bounds=bounds)
    scores = []
    for _ in range(steps):
        weights = search.ask()
        found = float(score(weights))
        if math.isnan(found):
            told = ", ".join(f"{w:.3g}" for w in weights)
            raise MergeError(f"the score of weights {told} is not a number: nothing can be searched for by it")
        scores.append(found)
        search.tell(found)
    return FoundWeights(search.weights, search.score, scores)
