"""Averages: of the skills of a bank as one task, as given tasks, or as none sees them (MHR-mu and Poly-mu, arXiv 2211.03831), and
of several adapters, with weights as a user gives them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from mhr.adapters.checkpoint import AdapterCheckpoint, routing_transforms, routing_weights
from mhr.adapters.collapse import check_average, collapse, collapse_task
from mhr.adapters.plain import PlainAdapter
from mhr.errors import MergeError, TaskError, nearest
from mhr.merging.combination import Combination, combines, merge_methods


@merge_methods.register("uniform")
def merge_uniform(checkpoint: AdapterCheckpoint) -> PlainAdapter:
    """`A = mean_s A[s]`, `B = mean_s B[s]`, every head by itself: `collapse` with w = 1/S, whatever was learned.

    For a bank with one adapter per task (private) it is the mean over tasks; for a shared one, the adapter itself.
    """
    return collapse(checkpoint, None)


@combines("uniform")
def combine_uniform(sources: Sequence[PlainAdapter], weights: list[float]) -> Combination:
    """`(x_1 + ... + x_K) / K` over several adapters."""
    return Combination(weights)


@merge_methods.register("task")
def merge_task(checkpoint: AdapterCheckpoint, *, task: str) -> PlainAdapter:
    """`collapse` with the routing weights of `task`. Raises TaskError for a task that the bank does not hold."""
    return collapse_task(checkpoint, task)


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
        averaged = [
            {group: torch.einsum("t,tij->ij", parts, table[rows].double()) for group, table in found.items()}
            for found in (routing_weights(checkpoint), routing_transforms(checkpoint))
        ]
        return collapse(checkpoint, *averaged)
    check_average(checkpoint)
    n_skills = checkpoint.config.skills_for(len(checkpoint.tasks))
    if len(weights) != n_skills:
        raise MergeError(
            f"got {len(weights)} weights for {n_skills} skills: give one per skill, or name tasks as in task=0.5"
        )
    row = torch.tensor(shares(weights), dtype=torch.float64).expand(checkpoint.config.n_heads or 1, -1)
    return collapse(checkpoint, dict.fromkeys(checkpoint.groups.values(), row))


@combines("weighted")
def combine_weighted(sources: Sequence[PlainAdapter], weights: list[float]) -> Combination:
    """`sum_k w_k x_k` with the weights that are given, over several adapters."""
    return Combination(weights)


def shares(values: Sequence[float]) -> list[float]:
    """The values divided by their sum. Raises MergeError where one is below 0 or not finite, or all are 0."""
    if not all(math.isfinite(v) and v >= 0 for v in values) or not sum(values) > 0:
        raise MergeError(f"weights are {list(values)}: expected finite numbers of at least 0, with one above 0")
    return [v / math.fsum(values) for v in values]


def input_shares(weights: Mapping[str, float] | Sequence[float] | None, names: Sequence[Sequence[str]]) -> list[float]:
    """A share for each input: equal ones for None, one after the other, or by name.

    names: of each input, all that it may be called. Raises MergeError for weights that do not fit the inputs in number or
    name, and as `shares` does.
    """
    return shares(_matched(weights, names))


def input_amounts(weights: Mapping[str, float] | Sequence[float] | None, names: Sequence[Sequence[str]]) -> list[float]:
    """What each input is multiplied by in a sum: weights as in `input_shares`, but of any sign and as they are, 1 each for None."""
    amounts = _matched(weights, names)
    if not any(amounts):
        raise MergeError(f"weights are {amounts}: expected one that is not 0")
    return amounts


def _matched(weights: Mapping[str, float] | Sequence[float] | None, names: Sequence[Sequence[str]]) -> list[float]:
    if weights is None:
        return [1.0] * len(names)
    if not isinstance(weights, Mapping):
        if len(weights) != len(names):
            raise MergeError(f"got {len(weights)} weights for {len(names)} inputs: give one per input, in their order")
        return list(weights)
    found = []
    for known in names:
        given = [name for name in known if name in weights]
        if not given:
            raise MergeError(f"no weight is given for {known[0]}: name every input, or give one weight per input")
        found.append(weights[given[0]])
    for name in weights:
        if not any(name in known for known in names):
            raise MergeError(f"weight for {name!r}, which is no input: {nearest(name, [n for k in names for n in k])}")
    return found
