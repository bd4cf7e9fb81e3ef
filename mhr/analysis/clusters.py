"""A tree of tasks: which are routed alike, pair by pair and group by group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Join:
    """One fork of the tree: the clusters `left` and `right` join at `height`. Cluster i < n is leaf i, n + k the k-th fork."""

    left: int
    right: int
    height: float
    size: int


def average_linkage(distances: Tensor) -> list[Join]:
    """Agglomerative clustering (UPGMA): the n - 1 forks of n leaves, the lowest first.

        d(A u B, C) = (|A| d(A, C) + |B| d(B, C)) / (|A| + |B|)

    distances [n, n], symmetric. O(n^3) time, n^2 memory; of equal distances the earliest pair joins.
    """
    d = distances.double().clone().fill_diagonal_(torch.inf)
    n = len(d)
    name, size = list(range(n)), [1] * n
    joins = []
    for k in range(n - 1):
        i, j = sorted(divmod(int(d.argmin()), n))
        joins.append(Join(name[i], name[j], float(d[i, j]), size[i] + size[j]))
        row = (size[i] * d[i] + size[j] * d[j]) / (size[i] + size[j])
        row[[i, j]] = torch.inf  # nothing joins itself
        d[i], d[:, i] = row, row
        d[j], d[:, j] = torch.inf, torch.inf
        name[i], size[i] = n + k, size[i] + size[j]
    return joins


def leaf_order(joins: list[Join]) -> list[int]:
    """The leaves from left to right, so that no branches of the tree cross."""
    n = len(joins) + 1
    order = []
    left = [n + len(joins) - 1] if joins else [0]
    while left:
        node = left.pop()
        if node < n:
            order.append(node)
        else:
            left += [joins[node - n].right, joins[node - n].left]
    return order
