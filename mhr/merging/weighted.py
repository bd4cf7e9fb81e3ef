"""Weighted merge: one plain adapter between given tasks, between given skills, or between several adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mhr.adapters.checkpoint import AdapterCheckpoint, routing_weights
from mhr.adapters.collapse import collapse
from mhr.adapters.plain import PlainAdapter
from mhr.errors import MergeError, TaskError, nearest
from mhr.merging.combination import Combination, merge_methods, register
from mhr.merging.shares import shares


@merge_methods.register("weighted")
def merge_weighted(checkpoint: AdapterCheckpoint, *, weights: Mapping[str, float] | Sequence[float]) -> PlainAdapter:
    """`collapse` with `w = sum_t c_t w_t / sum_t c_t`, or with `w[h, s] = c_s / sum_s c_s`.

    weights: a mapping, task -> c_t, averages the routing weights of those tasks, hence their factors A and B (not the
    products AB); the other tasks weigh nothing. A sequence, one c_s per skill, is the weights of the skills themselves, the
    same in every layer and head. Numbers of any size, divided by their sum.

    Raises TaskError for an unknown task, MergeError for numbers below 0, all 0, or one too many or few.
    """
    if isinstance(weights, Mapping):
        for task in weights:
            if task not in checkpoint.tasks:
                raise TaskError(f"unknown task {task!r}: {nearest(task, checkpoint.tasks)}")
        parts = torch.tensor(shares(list(weights.values())), dtype=torch.float64)
        rows = [checkpoint.tasks.index(task) for task in weights]
        tables = routing_weights(checkpoint)
        return collapse(
            checkpoint, {group: torch.einsum("t,ths->hs", parts, w[rows].double()) for group, w in tables.items()}
        )
    n_skills = checkpoint.config.skills_for(len(checkpoint.tasks))
    if len(weights) != n_skills:
        raise MergeError(
            f"got {len(weights)} weights for {n_skills} skills: give one per skill, or name tasks as in task=0.5"
        )
    row = torch.tensor(shares(weights), dtype=torch.float64).expand(checkpoint.config.n_heads or 1, -1)
    return collapse(checkpoint, dict.fromkeys(checkpoint.groups.values(), row))


@register("weighted", "factor", "delta", weights="needed")
def combine_weighted(sources: Sequence[PlainAdapter], weights: list[float]) -> Combination:
    """`sum_k w_k x_k` with the weights that are given, over several adapters."""
    return Combination(weights)
