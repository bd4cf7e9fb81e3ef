"""Is one better than the other? Paired differences over tasks and seeds, in which the seed is the unit."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mhr.analysis.bootstrap import crossed_interval
from mhr.analysis.power import Components, components
from mhr.analysis.seed_tests import NEGLIGIBLE, sign_flips, t_test

Drawn = TypeVar("Drawn", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Paired:
    """What is left of a comparison once everything that both had in common is taken out.

    difference  mean of the differences; tasks: over so many tasks
    by_seed     mean difference of each seed; better, worse: how many of these are above and below 0
    p           two-sided, of Student's t over the seeds' means; None for a single seed, which cannot tell
    p_flips     the same of flipping the signs of whole seeds, which assumes no normal distribution and needs six seeds
    interval    95%, over seeds and tasks (`mhr.analysis.bootstrap`); None for a single seed, and where all differences are the same
    parts       what the differences vary by; None for a single seed or task
    """

    difference: float
    tasks: int
    by_seed: tuple[float, ...]
    p: float | None
    p_flips: float | None
    interval: tuple[float, float] | None
    parts: Components | None

    @property
    def seeds(self) -> int:
        return len(self.by_seed)

    @property
    def better(self) -> int:
        return sum(mean > 0 for mean in self.by_seed)

    @property
    def worse(self) -> int:
        return sum(mean < 0 for mean in self.by_seed)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the seeds' means; None for a single seed."""
        return statistics.stdev(self.by_seed) if self.seeds > 1 else None

    @property
    def expected_spread(self) -> float | None:
        """The same as `parts` have it, for planning: never less than what the residual alone makes, as few seeds may happen to be alike.
        That of a single task is `spread`."""
        return self.spread if self.parts is None else self.parts.of_seed_means(self.tasks)


def compare(a: Mapping[tuple[str, Drawn], float], b: Mapping[tuple[str, Drawn], float]) -> Paired | None:
    """`a - b` over the (task, seed) pairs that both have; None where they have none in common.

    A seed counts where it has all the tasks in common; where none has, tasks are averaged over their seeds, which leaves one.
    """
    by_seed: dict[Drawn, dict[str, float]] = {}
    for task, seed in a:
        if (task, seed) in b:
            by_seed.setdefault(seed, {})[task] = a[task, seed] - b[task, seed]
    if not by_seed:
        return None
    tasks = list(dict.fromkeys(task for own in by_seed.values() for task in own))
    whole = [[own[task] for task in tasks] for own in by_seed.values() if len(own) == len(tasks)]
    if not whole:
        whole = [[statistics.mean(own[t] for own in by_seed.values() if t in own) for t in tasks]]
    return paired(np.array(whole))


def paired(differences: np.ndarray) -> Paired:
    """The comparison of which `differences` [seeds, tasks] are known."""
    means = tuple(0.0 if abs(mean) <= NEGLIGIBLE else float(mean) for mean in differences.mean(axis=1))
    return Paired(
        statistics.fmean(means),
        differences.shape[1],
        means,
        t_test(means),
        sign_flips(means) if len(means) > 1 else None,
        crossed_interval(differences),
        components(differences),
    )
