"""How an adapter routes its tasks: weights, how sharply they choose, and which tasks are routed alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """Routing of T tasks over S skills with H heads, in each of G groups of layers that share a table.

    tasks    names, T
    weights  group -> routing weights [T, H, S], without noise; over S they sum to 1. Where a task has a matrix between the factors of one
             adapter, its entries, rows for heads and columns for skills. Empty: no weights by task, as of one skill for all
    convex   whether they do sum to 1; otherwise they are any numbers, each skill's share is |w| / sum_s |w|, and a task that has 0 of all
             is what stands in the place of a uniform one
    """

    tasks: list[str]
    weights: dict[str, Tensor]
    convex: bool = True

    @property
    def even(self) -> float:
        """The weight that says nothing."""
        return 1 / self.n_skills if self.convex else 0.0

    @property
    def shares(self) -> Tensor:
        """The share of each skill [T, G, H, S], at least 0 and over S 1: the weights themselves where they are such."""
        size = self.stacked.double().abs()
        return self.stacked.double() if self.convex else size / size.sum(-1, keepdim=True).clamp(min=1e-300)

    @property
    def n_heads(self) -> int:
        return self.stacked.shape[2]

    @property
    def n_skills(self) -> int:
        return self.stacked.shape[3]

    @property
    def varied(self) -> bool:
        """Whether tasks can differ in how they are routed, so that the rest of this class says something."""
        return self.n_skills > 1 and bool((self.stacked != self.even).any())

    @property
    def columns(self) -> list[tuple[str, int, int]]:
        """(group, head, skill) of each column of `matrix`."""
        return [(g, h, s) for g in self.weights for h in range(self.n_heads) for s in range(self.n_skills)]

    @property
    def matrix(self) -> Tensor:
        """Routing weights [T, G * H * S], columns as in `columns`."""
        return self.stacked.flatten(1)

    @property
    def by_layer(self) -> Tensor:
        """Routing weights [T, G, S], averaged over heads."""
        return self.stacked.mean(2)

    @property
    def by_skill(self) -> Tensor:
        """Routing weights [T, S], averaged over layers and heads. Skills of different layers are not the same skill."""
        return self.stacked.mean((1, 2))

    @property
    def entropy(self) -> dict[str, float]:
        """Group -> `-sum_s w log w / log S`, averaged over tasks and heads: 1 is uniform, 0 one skill (or only one there)."""
        if self.n_skills == 1:
            return dict.fromkeys(self.weights, 0.0)
        return self._by_group(self._nats / torch.tensor(self.n_skills).double().log())

    @property
    def effective_skills(self) -> dict[str, float]:
        """Group -> `exp(-sum_s w log w)`, averaged over tasks and heads: from 1, one skill, to S, all alike."""
        return self._by_group(self._nats.exp())

    @property
    def discreteness(self) -> dict[str, float]:
        """Group -> `(max_s w - 1/S) / (1 - 1/S)`, averaged over tasks and heads: 0 is uniform, 1 one skill alone."""
        if self.n_skills == 1:
            return dict.fromkeys(self.weights, 1.0)
        even = 1 / self.n_skills
        return self._by_group((self.shares.amax(-1) - even) / (1 - even))

    @property
    def by_task(self) -> dict[str, dict[str, float]]:
        """Task -> entropy, effective_skills and discreteness, each averaged over layers and heads."""
        single = self.n_skills == 1
        even = 1 / self.n_skills
        nats = self._nats
        entropy = torch.zeros_like(nats) if single else nats / torch.tensor(self.n_skills).double().log()
        discreteness = torch.ones_like(nats) if single else (self.shares.amax(-1) - even) / (1 - even)
        measures = [t.mean((1, 2)).tolist() for t in (entropy, nats.exp(), discreteness)]
        names = ("entropy", "effective_skills", "discreteness")
        return {task: dict(zip(names, own, strict=True)) for task, *own in zip(self.tasks, *measures, strict=True)}

    @cached_property
    def similarity(self) -> Tensor:
        """Cosine [T, T] of `w - even` over all layers, heads and skills.

        Uniform routing is the origin: 1 is two tasks that leave it in the same direction, 0 in unrelated ones, and a task
        that is routed uniformly is like no other. (The weights themselves, all positive, have cosines near 1.) In float64, to nine digits.
        """
        weights = self.stacked.double().flatten(1)
        away = weights - self.even
        norms = away.norm(dim=1, keepdim=True)
        # What is left of a uniform row is rounding, which has a direction but no meaning.
        unit = torch.where(norms > 1e-6 * weights.norm(dim=1, keepdim=True), away / norms, 0.0)
        # Equal cosines, such as those of all pairs of tasks with a skill each, differ by rounding, which ranks and trees would take for more.
        return (unit @ unit.T).round(decimals=9).clamp(-1, 1).fill_diagonal_(1.0)

    def most_alike(self, n: int = 1) -> dict[str, list[tuple[str, float]]]:
        """Task -> its `n` most similar other tasks with their cosines; empty where tasks are routed alike by design."""
        if not self.varied or len(self.tasks) < 2:
            return {}
        others = self.similarity.clone().fill_diagonal_(-torch.inf)
        values, indices = others.topk(min(n, len(self.tasks) - 1))
        return {
            task: [(self.tasks[i], v) for i, v in zip(indices[row].tolist(), values[row].tolist(), strict=True)]
            for row, task in enumerate(self.tasks)
        }

    @cached_property
    def stacked(self) -> Tensor:
        """The weights of all groups, [T, G, H, S]."""
        if not self.weights:
            return torch.ones(len(self.tasks), 1, 1, 1)
        return torch.stack(list(self.weights.values()), dim=1)

    @property
    def _nats(self) -> Tensor:
        """Entropy `-sum_s w log w` [T, G, H]."""
        w = self.shares
        return -torch.special.xlogy(w, w).sum(-1)

    def _by_group(self, values: Tensor) -> dict[str, float]:
        """Mean over tasks and heads of `values` [T, G, H]."""
        return dict(zip(self.weights, values.mean((0, 2)).tolist(), strict=True)) if self.weights else {}

    def spread(self, most: int) -> Routing:
        """The routing of at most so many tasks, spread evenly over their order."""
        n = len(self.tasks)
        if n <= most:
            return self
        rows = [i * n // most for i in range(most)]
        weights = {group: w[rows] for group, w in self.weights.items()}
        return Routing([self.tasks[i] for i in rows], weights, self.convex)
