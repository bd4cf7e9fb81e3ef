"""Did the routing find the skills? Similarity of tasks against how many skills they truly share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mhr.data.skills import skills_of
from mhr.errors import TaskError


@dataclass(frozen=True, slots=True)
class Agreement:
    """correlation: Spearman's over all pairs of tasks; p: share of permutations that reach it; pairs: how many pairs."""

    correlation: float
    p: float
    pairs: int


def shared_skills(tasks: Sequence[str]) -> Tensor | None:
    """Number of skills that two tasks of the built-in suite share [T, T]; None where a name is no task of the suite."""
    try:
        chains = [set(skills_of(task)) for task in tasks]
    except TaskError:
        return None
    return torch.tensor([[len(a & b) for b in chains] for a in chains], dtype=torch.float64)


def agreement(similarity: Tensor, truth: Tensor, n_permutations: int = 10_000, seed: int = 0) -> Agreement | None:
    """Mantel's test: the rank correlation of two similarities of tasks over their pairs, against permuted task names.

    similarity, truth [T, T], symmetric; the diagonal is not used. The p value is one-sided (greater),
    `(1 + reached) / (1 + n_permutations)`. None for fewer than three tasks, or where one of the two is constant.
    """
    n = len(similarity)
    rows, columns = torch.triu_indices(n, n, 1)
    observed_ranks, true = average_ranks(similarity[rows, columns]), average_ranks(truth[rows, columns])
    observed_ranks, true = observed_ranks - observed_ranks.mean(), true - true.mean()
    scale = observed_ranks.norm() * true.norm()
    if n < 3 or scale == 0:
        return None
    table = torch.zeros(n, n, dtype=torch.float64)
    table[rows, columns] = observed_ranks
    table = table + table.T
    generator = torch.Generator().manual_seed(seed)
    observed = float(observed_ranks @ true / scale)
    reached = 0
    for _ in range(n_permutations):
        order = torch.randperm(n, generator=generator)
        reached += float(table[order[rows], order[columns]] @ true / scale) >= observed - 1e-12
    return Agreement(observed, (1 + reached) / (1 + n_permutations), len(rows))


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1, float64, equal values sharing the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[inverse]
