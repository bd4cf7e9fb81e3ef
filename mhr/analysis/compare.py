"""Is one better than the other? Paired differences and the chance of seeing them if neither were."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Drawn = TypeVar("Drawn", bound=Hashable)

EXACT_UP_TO = 13
"""Differences of which every combination of signs is tried; of more, N_FLIPS random ones."""
N_FLIPS = 20_000


@dataclass(frozen=True, slots=True)
class Paired:
    """What is left of a comparison once everything that both had in common is taken out.

    difference  mean of the differences; better, worse: how many are above and below 0; n: all of them
    p           two-sided, of `sign_flip`
    by_seed     mean difference of each seed, in the order of the seeds
    """

    difference: float
    better: int
    worse: int
    n: int
    p: float
    by_seed: list[float]

    @property
    def spread(self) -> float:
        """Standard deviation of the seeds' differences; 0 of a single seed."""
        return statistics.stdev(self.by_seed) if len(self.by_seed) > 1 else 0.0


def compare(a: Mapping[tuple[str, Drawn], float], b: Mapping[tuple[str, Drawn], float]) -> Paired | None:
    """`a - b` over the (task, seed) pairs that both have; None where they have none in common."""
    common = [key for key in a if key in b]
    if not common:
        return None
    differences = [a[key] - b[key] for key in common]
    seeds = dict.fromkeys(seed for _, seed in common)
    by_seed = [statistics.mean(d for d, (_, s) in zip(differences, common, strict=True) if s == seed) for seed in seeds]
    return Paired(
        statistics.mean(differences),
        sum(d > 0 for d in differences),
        sum(d < 0 for d in differences),
        len(differences),
        sign_flip(differences),
        by_seed,
    )


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p value of a paired permutation test: how often the sum of the differences is as far from 0 when each of
    their signs is drawn at random.

    Exact for at most EXACT_UP_TO differences that are not 0, otherwise `(1 + reached) / (1 + N_FLIPS)`.
    """
    moved = torch.tensor([d for d in differences if d != 0], dtype=torch.float64)
    if not len(moved):
        return 1.0
    observed = abs(float(moved.sum())) - 1e-12 * float(moved.abs().sum())
    if len(moved) <= EXACT_UP_TO:
        signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=len(moved))), dtype=torch.float64)
        return float(((signs @ moved).abs() >= observed).double().mean())
    generator = torch.Generator().manual_seed(seed)
    reached = 0
    for _ in range(20):
        flips = torch.randint(0, 2, (N_FLIPS // 20, len(moved)), generator=generator).double() * 2 - 1
        reached += int(((flips @ moved).abs() >= observed).sum())
    return (1 + reached) / (1 + N_FLIPS)
