"""Soups (arXiv 2203.05482): averages of checkpoints of one model, of all, greedily of those that make it better, or with weights that are
searched for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mhr.adapters.plain import PlainAdapter
from mhr.merging.combination import Combination, combines
from mhr.weight_search import find_weights


@combines("soup-uniform")
def combine_soup_uniform(sources: Sequence[PlainAdapter], weights: list[float]) -> Combination:
    """`(x_1 + ... + x_K) / K`. Banks of one layout are averaged skill by skill, with their routing, and stay a bank."""
    return Combination(weights)


@combines("soup-greedy")
def combine_soup_greedy(
    sources: Sequence[PlainAdapter], weights: list[float], *, score: Callable[[list[float]], float]
) -> Combination:
    """`mean of the chosen x_k`: inputs by their own score, the best first; each stays if the average with it scores higher.

    score: of the average with the given weights, on the dev examples. Equal scores are ordered by what the inputs hold, so
    that the order in which they were named changes nothing. The paper also keeps an input that changes nothing; here the
    average has to improve.
    """
    n = len(sources)
    alone = [score(_equal([i], n)) for i in range(n)]
    order = sorted(range(n), key=lambda i: (-alone[i], sources[i].digest))
    chosen, best = [order[0]], alone[order[0]]
    steps = [{"input": sources[order[0]].name, "alone": best, "with it": best, "kept": True}]
    for i in order[1:]:
        found = score(_equal([*chosen, i], n))
        steps.append({"input": sources[i].name, "alone": alone[i], "with it": found, "kept": found > best})
        if found > best:
            chosen, best = [*chosen, i], found
    return Combination(_equal(chosen, n), notes={"steps": steps})


@combines("search")
def combine_search(
    sources: Sequence[PlainAdapter],
    weights: list[float],
    *,
    score: Callable[[list[float]], float],
    tries: int,
    seed: int,
) -> Combination:
    """`sum_k w_k x_k` with the w_k, adding up to 1, of the highest score on the dev examples of `tries` (LoraHub's idea, arXiv 2307.13269).

    `find_weights` from the given weights over [0, 1]^K, each try divided by its sum; a try that is 0 everywhere is the worst.
    """
    if len(sources) == 1:
        return Combination(weights)

    def tried(found: list[float]) -> float:
        return score(_normalised(found)) if any(found) else float("-inf")

    found = find_weights(tried, len(sources), steps=tries, seed=seed, start=weights)
    notes = {"dev score": found.score, "of the start": found.scores[0], "tries": len(found.scores)}
    return Combination(_normalised(found.weights), notes=notes)


def _normalised(weights: Sequence[float]) -> list[float]:
    return [w / math.fsum(weights) for w in weights]


def _equal(chosen: Sequence[int], n: int) -> list[float]:
    return [1 / len(chosen) if i in chosen else 0.0 for i in range(n)]
